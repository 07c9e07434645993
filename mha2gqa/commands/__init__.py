"""One verb per file: the order of its steps, no maths. Each takes its options and returns a report."""
