"""What `demo` refuses before it imports what runs models: by its options, by paths and by small files alone."""

from mha2gqa.pages.page import check_place
from mha2gqa.verbs.demo.options import DemoOptions


def check(options: DemoOptions) -> None:
    """Refuse a directory that nothing can be written into.

    Raises:
        OutputError: It is a file, or cannot be written into.
    """
    check_place(options.directory)
