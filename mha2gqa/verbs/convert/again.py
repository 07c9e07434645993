"""Conversions as commands, and a recorded conversion as options again, perhaps of another way.

Nothing is printed that the tool would refuse: `possible` has the conversion planned first, as a dry run would be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from mha2gqa.errors import Mha2GqaError, TextError
from mha2gqa.files.source import Source
from mha2gqa.files.staging import check_output
from mha2gqa.methods import AUTO
from mha2gqa.record.commands import command_line
from mha2gqa.record.conversion import Conversion
from mha2gqa.texts.words import check_named
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert

_NAMES = {field.name.replace("_", "-"): field.name for field in fields(ConvertOptions)}


def command_of(options: ConvertOptions) -> str:
    """Return the command that converts so, without what is the default anyway."""
    defaults = {field.name.replace("_", "-"): field.default for field in fields(ConvertOptions)}
    asked = {"latent-like-groups": options.latent_like_groups, "cache": options.cache, **options.recorded()}
    named = {name: value for name, value in asked.items() if value != defaults[name]}
    return command_line("convert", options.model, named | {"output": options.output})


def recorded(conversion: Conversion, model: str | None, output: Path) -> ConvertOptions:
    """Return the options of a recorded conversion, for the same original and another output.

    Raises:
        OptionError: A value of the record cannot be.
    """
    known = {_NAMES[name]: value for name, value in conversion.options.items() if name in _NAMES and value is not None}
    return ConvertOptions(**known | {"model": model, "output": output})


def possible(ways: Iterable[ConvertOptions], source: Source) -> ConvertOptions | None:
    """Return the first of some ways to convert that would not be refused; None where all would be."""
    for way in ways:
        if AUTO in (way.groups, way.window_layers) or not is_there(way.data):  # a plan of `auto` takes as long as it
            continue
        try:
            planned = convert(replace(way, dry_run=True))
            check_output(planned.output, source.directory, planned.bytes_written, force=False)
        except Mha2GqaError:
            continue
        return way
    return None


def is_there(data: Sequence[str]) -> bool:
    """Return whether files of text are where they were when they were read; of the Hub nothing is asked."""
    try:
        check_named(data)
    except TextError:
        return False
    return True


def free(place: Path) -> Path:
    """Return a directory that is not there yet, of that name or one like it."""
    number, found = 1, place
    while found.exists() or found.is_symlink():
        number += 1
        found = place.with_name(f"{place.name}-{number}")
    return found
