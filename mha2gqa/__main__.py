"""`python -m mha2gqa`."""

from mha2gqa.cli import main

main()
