"""What can be asked of `bench`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from mha2gqa.engines import ENGINES
from mha2gqa.options import Option, Options, listed, one_of
from mha2gqa.verbs.options import LARGEST_SEED, Against, AsJson, ConfigFile, Converted, Device, Dtype, Page

CacheKind = Literal["dynamic", "static"]
Attention = Literal["eager", "sdpa", "grouped", "absorbed", "flash_attention_2"]
_ENGINES = ("transformers", *ENGINES)


def _numbers(default: tuple[int, ...] = ()) -> Callable[[Any], tuple[int, ...]]:
    """Return a parser of numbers such as `1,8`; `default` where there are none."""

    def parse(value: Any) -> tuple[int, ...]:
        parts = [str(part) for part in listed(value)]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError(f"{value!r} is no list of positive whole numbers, such as 1,8")
        return tuple(map(int, parts)) or default

    return parse


def _caches(value: Any) -> tuple[str, ...]:
    return tuple(map(one_of(get_args(CacheKind)), listed(value)))


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """Measure cache and speed of original and converted model."""

    converted: Converted = None
    against: Against = None
    shape: Annotated[
        str | None, Option("Random weights of a named shape (llama-2-7b, ...) or config.json, not checkpoints.")
    ] = None
    groups: Annotated[
        int | None, Option("KV heads of the second model of --shape.", least=1, flags=("--groups", "-g"))
    ] = None
    latent: Annotated[
        int | None,
        Option("Or the width of a latent in their place, with --rope-width that of its rotary key.", least=2),
    ] = None
    """In the place of `groups`: width of the latent of the second model of a shape."""
    rope_width: Annotated[int | None, Option("Width of the rotary key beside --latent.", least=2)] = None
    batch: Annotated[tuple[int, ...], Option("Sequences at a time.", parse=_numbers((1,)), metavar="N,...")] = (1, 8)
    context: Annotated[
        tuple[int, ...],
        Option(
            "Tokens in the cache, or of the source. Default: 1024, 4096 and 16384 as far as the model reads.",
            parse=_numbers(),
            metavar="N,...",
        ),
    ] = ()
    target_context: Annotated[
        int | None, Option("Tokens in an encoder-decoder's own cache. Default: up to 32.", least=1)
    ] = None
    cache: Annotated[
        tuple[CacheKind, ...],
        Option("Caches. Default: both.", parse=_caches, metavar=",".join(get_args(CacheKind))),
    ] = ()
    attention: Annotated[Attention | None, Option("Attention implementation. Default: what transformers takes.")] = None
    tokens: Annotated[int, Option("Tokens that a model decodes in a turn.", least=1)] = 8
    turns: Annotated[int, Option("Turns of each model that count.", least=1)] = 5
    """Turns of each model that are measured; one more before them is not."""
    prefill_tokens: Annotated[
        int | None, Option("Tokens of a batch of prompts, at most. Default on a CPU: 1024.", least=1)
    ] = None
    memory: Annotated[str | None, Option("What the largest batch may fill, such as 80GB. Default: all.")] = None
    engine: Annotated[str, Option("What runs the models.", parse=one_of(_ENGINES), metavar="|".join(_ENGINES))] = (
        "transformers"
    )
    dtype: Dtype = None
    device: Device = None
    seed: Annotated[int, Option("Seed of random weights, tokens and caches.", least=0, most=LARGEST_SEED)] = 0
    report: Page = None
    as_json: ClassVar[AsJson] = False
    config: ClassVar[ConfigFile] = None
