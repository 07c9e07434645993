"""What can be asked of `verify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from mha2gqa.engines import ENGINES
from mha2gqa.errors import OptionError
from mha2gqa.options import Option, Options, at_least, listed_names, one_of, share
from mha2gqa.verbs.options import (
    LARGEST_SEED,
    Against,
    AsJson,
    BatchSize,
    Column,
    Context,
    Converted,
    Device,
    Dtype,
    Page,
)

Level = Literal["file", "load", "outputs"]
_NO_TASK = "--tasks needs the name of a benchmark; --task-path says where more of them are"


def _tasks(value: Any) -> tuple[str, ...]:
    names = listed_names(value)
    if isinstance(value, str) and not names:
        raise OptionError(_NO_TASK)
    return names


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """Check a converted checkpoint against its original.

    A limit that is None is its default, or what suits the conversion.
    """

    converted: Converted = None
    against: Against = None
    data: Annotated[
        tuple[str, ...],
        Option("Text, jsonl, csv or parquet file, Hub data set, or `self`; repeatable.", is_repeatable=True),
    ] = ()
    """Text to compare the outputs on: files, Hub data sets, or `self` for text that the original writes; empty is the
    held-out text for the reference checkpoint, and `self` for any other."""
    column: Column = None
    tokens: Annotated[
        int | None,
        Option(
            "Tokens to compare the outputs on. Default: 32768, or 8192 that the model writes.",
            parse=at_least(2),
            metavar="N",
        ),
    ] = None
    context: Context = None
    """Tokens of a block; None is as many as the model reads, up to 2048, and up to 512 that it writes itself."""
    batch_size: BatchSize = None
    levels: Annotated[
        tuple[Level, ...], Option("What to verify; repeatable.", flags=("--level",), is_repeatable=True)
    ] = get_args(Level)
    max_ppl_increase: Annotated[
        float | None,
        Option("Largest increase of the perplexity. Default: 0.01, or 1%.", parse=share(), metavar="SHARE"),
    ] = None
    max_kl: Annotated[float | None, Option("Largest mean KL, nats a token. Default: 0.05.", least=0)] = None
    min_top1: Annotated[
        float | None,
        Option("Least share of equal most likely tokens. Default: 0.9.", parse=share(1), metavar="SHARE"),
    ] = None
    min_cosine: Annotated[
        float | None,
        Option("Least mean cosine of embeddings, for models without a head. Default: 0.99.", least=-1, most=1),
    ] = None
    engine: Annotated[
        str | None,
        Option(
            "Also have this engine run the result, and hold it against transformers.",
            parse=one_of(ENGINES),
            metavar="|".join(ENGINES),
        ),
    ] = None
    """An engine of others that reads and writes a few tokens, too: `llama.cpp` the GGUF file beside the checkpoint."""
    dtype: Dtype = None
    device: Device = None
    seed: Annotated[int, Option("Seed of sampled text and of the bootstrap.", least=0, most=LARGEST_SEED)] = 0
    tasks: Annotated[
        tuple[str, ...], Option("Benchmarks of lm-evaluation-harness, such as hellaswag,piqa.", parse=_tasks)
    ] = ()
    """Benchmarks of lm-evaluation-harness to score both models on: tasks, groups, tags, or patterns with `*`."""
    task_path: Annotated[Path | None, Option("Directory of further task definitions.")] = None
    report: Page = None
    write_card: Annotated[bool, Option("Add the numbers to the converted checkpoint's README.md.")] = False
    as_json: ClassVar[AsJson] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_path is not None and not self.tasks:
            raise OptionError(_NO_TASK)
