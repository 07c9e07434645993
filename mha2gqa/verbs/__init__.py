"""One folder a verb: options, run, outcome, words, page."""
