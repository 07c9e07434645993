"""What `uptrain` refuses before it imports what runs models: by its options, by paths and by small files alone."""

from pathlib import Path

from mha2gqa.files.staging import check_output
from mha2gqa.pages.page import check_place
from mha2gqa.record.pair import check_pair
from mha2gqa.texts.words import check_named, check_words
from mha2gqa.units import parse_size
from mha2gqa.verbs.uptrain.length import check_keys, check_length, check_weights
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.workspace import check_workspace


def check(options: UptrainOptions) -> None:
    """Refuse what needs no model.

    Raises:
        Mha2GqaError: A number cannot be, a directory, record or text is not there, or something cannot be written.
    """
    check_length(options)
    check_keys(options.trainer)
    check_weights(options)
    parse_size(options.max_shard_size)
    if options.report is not None:
        check_place(options.report)
    check_words(options.data)
    check_words(options.held_out, ())
    check_named((*options.data, *options.held_out))
    directory = check_pair(options.converted, options.against)
    output = output_of(options, directory)
    check_output(output, directory, 0, force=options.force)
    check_workspace(output, resume=options.resume, force=options.force)


def output_of(options: UptrainOptions, directory: Path) -> Path:
    """Return where the result goes: where it is asked for, else beside where the command is run."""
    return options.output or Path(f"{directory.resolve().name}-uptrained")
