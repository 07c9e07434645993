"""What `verify` refuses before it imports what runs models: by its options, by paths and by small files alone."""

from pathlib import Path

from mha2gqa.engines import check_installed
from mha2gqa.errors import BenchmarkError
from mha2gqa.pages.page import check_place
from mha2gqa.record.pair import check_pair
from mha2gqa.texts.words import check_named, check_words
from mha2gqa.verbs.verify.options import VerifyOptions


def check(options: VerifyOptions) -> None:
    """Refuse what needs no model.

    Raises:
        Mha2GqaError: A directory, record, text, engine or extra is not there, or a page cannot be written.
    """
    if "outputs" in options.levels:
        check_words(options.data)
        check_named(options.data)
    if options.engine is not None:
        check_installed(options.engine)
    if options.report is not None:
        check_place(options.report)
    check_task_path(options.task_path)
    check_pair(options.converted, options.against)


def check_task_path(path: Path | None) -> None:
    """Refuse a directory of tasks that is not there.

    Raises:
        BenchmarkError: It is not.
    """
    if path is not None and not path.is_dir():
        raise BenchmarkError(f"No such directory: {str(path)!r}", expected="--task-path with task definitions in YAML")
