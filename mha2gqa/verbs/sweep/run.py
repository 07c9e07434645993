"""`mha2gqa sweep`: many conversions of one checkpoint, each measured on held-out text, and which of them to take.

Every combination is planned before the first is made. Results are written after each measurement, so that a run that
was interrupted goes on from there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mha2gqa.model.original import Original
from mha2gqa.pages.page import check_place, write_page
from mha2gqa.progress import QUIET, Progress
from mha2gqa.record.conversion import Outcome
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.sweep.early import output_of
from mha2gqa.verbs.sweep.measuring import check_kind
from mha2gqa.verbs.sweep.options import SweepOptions
from mha2gqa.verbs.sweep.outcome import Sweep
from mha2gqa.verbs.sweep.steps import Run
from mha2gqa.verbs.sweep.store import read_results, settings_of
from mha2gqa.verbs.sweep.texts import check_texts
from mha2gqa.verbs.sweep.ways import all_ways, convert_options, settled


def sweep(options: SweepOptions, progress: Progress = QUIET) -> Sweep:
    """Convert in every combination of groups, methods and refinements, and measure each on held-out text.

    Args:
        options: What to try, and on which text.
        progress: Told of each step, what is done in it, and each conversion that was measured.

    Returns:
        Every point that the file of the results holds, those of earlier runs included.

    Raises:
        Mha2GqaError: The request is refused before anything was converted, or the disk is full.
    """
    original = Original.find(options.model)
    ways = all_ways(options, original)
    asked = (convert_options(way, options, options.data, options.column, None) for way in ways)
    plans = [convert(replace(settled(one, original), dry_run=True)) for one in asked]
    check_kind(original.architecture.outline)
    check_texts(options)
    if options.report is not None:
        check_place(options.report)
    output = output_of(options, original.source)
    settings = settings_of(options, original)
    found = read_results(output, settings, force=options.force) or _nothing_yet(original, plans, settings)
    run = Run(options, original, output, progress)
    cache = plans[0].cache_before
    results = run.go(ways, replace(found, max_ppl_increase=options.max_ppl_increase), cache)
    if options.report is not None:
        from mha2gqa.verbs.sweep.page import sweep_page

        write_page(options.report, sweep_page(results))
    return results


def _nothing_yet(original: Original, plans: Sequence[Outcome], settings: dict[str, Any]) -> Sweep:
    heads = [(plan, fact.before) for plan in plans for fact in plan.change.facts if fact.name == "heads"]
    plan, before = heads[0] if heads else (plans[0], original.architecture.kv_heads)
    return Sweep(
        name=original.source.name,
        model=plan.source,
        model_type=plan.model_type if heads else original.architecture.model_type,
        heads=before,
        cache=plan.cache_before,
        max_ppl_increase=0.0,
        text=None,
        dtype="",
        device="",
        points=(),
        layers=(),
        settings=settings,
    )
