"""What `sweep` refuses before it imports what runs models: by its options, by paths and by small files alone."""

from pathlib import Path

from mha2gqa.files.source import Source, local_source
from mha2gqa.model.original import Original
from mha2gqa.pages.page import check_place
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.plan import make_plan
from mha2gqa.units import parse_size
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.store import read_results, settings_of
from mha2gqa.verbs.sweep.texts import check_texts
from mha2gqa.verbs.sweep.ways import all_ways, check_methods


def check(options: SweepOptions) -> None:
    """Refuse what needs no model; of one on the Hub what its options say.

    Raises:
        Mha2GqaError: There is no such method, number of heads, text or model, or the results are of another sweep.
    """
    check_methods(options)
    parse_size(options.activation_memory, "--activation-memory")
    check_texts(options)
    if options.report is not None:
        check_place(options.report)
    if (source := local_source(options.model)) is not None:
        _check_model(options, source)


def _check_model(options: SweepOptions, source: Source) -> None:
    original = Original.read(source)
    all_ways(options, original)
    for groups in options.groups:
        target = KvHeads(groups)
        make_plan(target.host(original), target)
    read_results(output_of(options, source), settings_of(options, original), force=options.force)


def output_of(options: SweepOptions, source: Source) -> Path:
    """Return where the results go: where it is asked for, else beside where the command is run."""
    return options.output or Path(f"{source.name}-sweep.json")
