"""`mha2gqa bench`: its signature."""

from typing import cast

from mha2gqa.cli import arguments
from mha2gqa.cli import bench_arguments as own
from mha2gqa.cli.app import app, quick_imports
from mha2gqa.verbs.bench.options import Attention, BenchOptions, CacheKind, Engine


@app.command()
def bench(
    converted: arguments.Converted = None,
    against: arguments.Against = None,
    shape: own.Shape = None,
    groups: own.ShapeGroups = None,
    batch: own.Batches = "1,8",
    context: own.Contexts = None,
    target_context: own.TargetContext = None,
    cache: own.Caches = None,
    attention: own.AttentionName = None,
    tokens: own.Tokens = 8,
    turns: own.Turns = 5,
    prefill_tokens: own.PrefillTokens = None,
    memory: own.Memory = None,
    engine: own.EngineName = "transformers",
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    seed: own.BenchSeed = 0,
    report: arguments.ReportDirectory = None,
    as_json: arguments.AsJson = False,
    config: arguments.Config = None,
) -> None:
    """Measure cache and speed, original and converted side by side, beside what their bytes allow."""
    with quick_imports():
        from transformers.utils import logging

        from mha2gqa import console
        from mha2gqa.verbs.bench.run import bench as run

    logging.disable_progress_bar()
    options = BenchOptions(
        converted=converted,
        against=against,
        shape=shape,
        groups=groups,
        batch=own.numbers(batch) or (1,),
        context=own.numbers(context),
        target_context=target_context,
        cache=cast(tuple[CacheKind, ...], own.names(cache, own.CACHES)),
        attention=cast(Attention | None, attention),
        tokens=tokens,
        turns=turns,
        prefill_tokens=prefill_tokens,
        memory=memory,
        engine=cast(Engine, engine),
        dtype=dtype,
        device=device,
        seed=seed,
        report=report,
    )
    with console.stages() as progress:
        result = run(options, progress)
    console.print_json(result.to_json()) if as_json else console.print_bench(result)
    if report is not None:
        console.print_note(f"The page is {report / 'report.html'}")
