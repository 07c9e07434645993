"""What conversions cost in quality: `python benchmarks/quality.py --help`.

    prepare_texts  documents for calibration and, none of them in both, for evaluation
    plan_jobs      every way to convert (`ways.py`), number of KV heads and seed
    main           runs what is not in the JSON file yet, and shows it all (`quality_results.py`)

Seeds also order the documents that calibration text is taken from, so a range over seeds is one over texts, too.
"""

import json
import os
import platform
import random
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from quality_job import Job, Settings, run
from quality_results import Results, Run, draw, format_tables
from ways import WAYS

from mha2gqa.verbs.convert.options import STEPS

REFERENCE = "reference"
_TABLE = [*(way for way in WAYS if WAYS[way].by == "groups" and way not in ("random-text", "self"))]
"""Ways of the tables in the documents."""
_EVALUATION_SHARE = 5
"""One character in so many of a text that has to serve for both is evaluated on."""


def prepare_texts(
    data: Sequence[str], evaluation: Sequence[str], separator: str | None, column: str | None
) -> tuple[list[str], list[str]]:
    """Return the documents to calibrate and to evaluate on, each once and in one of the two only.

    Args:
        data: Files or data sets of calibration text; empty takes the reference checkpoint's texts.
        evaluation: Of evaluation text; empty takes the first fifth of `data`.
        separator: Regular expression between the documents of a text file.
        column: Column of tables that holds the text.
    """
    from mha2gqa.reference import corpus
    from mha2gqa.texts.documents import read_documents

    def read(names: Sequence[str]) -> list[str]:
        documents = (one for one in read_documents(names, column) if isinstance(one, str))
        parts = (part.strip() for one in documents for part in (re.split(separator, one) if separator else [one]))
        return list(dict.fromkeys(filter(None, parts)))

    if not data:
        files = (corpus.calibration_files(), corpus.held_out_files())
        return list(corpus.read_documents(files[0])), list(corpus.read_documents(files[1]))
    documents = read(data)
    if evaluation:
        held_out = read(evaluation)
        return [one for one in documents if one not in set(held_out)], held_out
    wanted, taken = sum(map(len, documents)) / _EVALUATION_SHARE, 0
    for number, document in enumerate(documents):
        if taken >= wanted:
            return documents[number:], documents[:number]
        taken += len(document)
    sys.exit("error: one document cannot be divided; name others with --eval, or give --separator")


def plan_jobs(
    model: str,
    groups: Sequence[int],
    ways: Sequence[str],
    seeds: int,
    texts: tuple[list[str], list[str]],
    settings: Settings,
    folder: Path,
) -> Iterator[Job]:
    """Yield the original's job, then those of every conversion; what draws no numbers and reads no text runs once."""
    path = None if model == REFERENCE else model
    evaluation = _write(folder / "evaluation.jsonl", texts[1])
    yield Job(model=path, evaluation=evaluation, settings=settings)
    for seed in range(seeds):
        shuffled = random.Random(seed).sample(texts[0], len(texts[0]))  # noqa: S311 (no secret)
        calibration = _write(folder / f"calibration-{seed}.jsonl", shuffled)
        for count in groups:
            for way in ways:
                if seed == 0 or WAYS[way].text or WAYS[way].draws:
                    yield Job(
                        model=path,
                        groups=count,
                        way=way,
                        seed=seed,
                        calibration=calibration,
                        evaluation=evaluation,
                        settings=settings,
                    )


def _write(path: Path, documents: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
    return str(path)


def describe_machine(threads: int | None) -> str:
    """Return one line: processor, cores, threads and versions, without a path."""
    from importlib.metadata import version

    cpuinfo = Path("/proc/cpuinfo").read_text()
    processor = re.search(r"model name\s*: (.*)", cpuinfo)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    used = f"{threads} thread{'s' * (threads > 1)}" if threads else "torch's own number of threads"
    name = processor[1] if processor else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {used}; Python {platform.python_version()}, {versions}"


def complete(found: Results, checkpoint: str, text: str, jobs: Iterable[Job], path: Path | None) -> None:
    """Run the jobs that are not among the results yet; with `path` keep every result as soon as it is there."""
    for job in jobs:
        settings = asdict(job.settings)
        planned = Run(
            checkpoint=checkpoint, text=text, groups=job.groups, way=job.way, seed=job.seed, settings=settings
        )
        if found.has(planned):
            continue
        found.add(planned, run(job))
        print(f"{checkpoint} {job.way or 'original'} {job.groups or ''} {found.runs[-1].measured}", file=sys.stderr)
        if path:
            found.write(path)


def main(
    checkpoint: Annotated[list[str] | None, typer.Argument(help=f"Directories or Hub ids, or `{REFERENCE}`.")] = None,
    groups: Annotated[str, typer.Option(help="KV heads of the results, comma-separated.")] = "4,2,1",
    ways: Annotated[str, typer.Option(help="Ways to convert, comma-separated.")] = ",".join(_TABLE),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    data: Annotated[list[str] | None, typer.Option(help="Calibration text; by default the reference's own.")] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="Evaluation text; by default the first fifth of --data.")
    ] = None,
    separator: Annotated[str | None, typer.Option(help="Regular expression between documents of a text file.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of tables that holds the text.")] = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens, at most.")] = 262_144,
    eval_tokens: Annotated[int, typer.Option(help="Evaluation tokens, at most.")] = 50_000,
    context: Annotated[int | None, typer.Option(help="Tokens of a block.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps of distil and joint.")] = STEPS,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    name: Annotated[str | None, typer.Option(help="What the table calls the text.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Keep results here; go on with those there.")] = None,
    results: Annotated[list[Path] | None, typer.Option(help="Earlier results to show with these.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw them, as PNG.")] = None,
) -> None:
    """Measure what conversions lose, in nats a token and as a share of what the mean of the heads loses."""
    chosen = ways.split(",")
    if unknown := [way for way in chosen if way not in WAYS]:
        sys.exit(f"error: no way is called {', '.join(unknown)}; there are {', '.join(WAYS)}")
    settings = Settings(tokens=tokens, eval_tokens=eval_tokens, context=context, steps=steps, threads=threads)
    found = Results.read(json_file) if json_file and json_file.exists() else Results(describe_machine(threads), [])
    texts = prepare_texts(data or [], evaluation or [], separator, column) if checkpoint else ([], [])
    called = name or (", ".join(Path(one).name for one in data) if data else "its own text")
    for model in checkpoint or []:
        with tempfile.TemporaryDirectory() as folder:
            counts = [int(count) for count in groups.split(",")]
            jobs = plan_jobs(model, counts, chosen, seeds, texts, settings, Path(folder))
            complete(found, Path(model).name, called, jobs, json_file)
    shown = [found, *map(Results.read, results or [])] if found.runs else [Results.read(one) for one in results or []]
    print("\n\n".join(format_tables(one) for one in shown))
    if plot:
        draw(shown, plot)


if __name__ == "__main__":
    typer.run(main)
