"""The options of `bench` alone, as types. Lists are written with commas. No torch here."""

from collections.abc import Callable
from typing import Annotated, get_args

import typer

from mha2gqa.verbs.bench.options import Attention, CacheKind, Engine

ATTENTIONS = get_args(Attention)
CACHES = get_args(CacheKind)
ENGINES = get_args(Engine)


def numbers(text: str | None) -> tuple[int, ...]:
    """Return the numbers of a list such as `1,8`.

    Raises:
        typer.BadParameter: One is no positive whole number.
    """
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of positive whole numbers, such as 1,8")
    return tuple(int(part) for part in parts)


def names(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a list such as `dynamic,static`.

    Raises:
        typer.BadParameter: One is not known.
    """
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if unknown := [part for part in parts if part not in known]:
        raise typer.BadParameter(f"{unknown[0]!r} is not one of {', '.join(known)}")
    return parts


def _known(known: tuple[str, ...]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None:
            names(value, known)
        return value

    return check


def _numbers(value: str | None) -> str | None:
    numbers(value)
    return value


Shape = Annotated[
    str | None, typer.Option(help="Random weights of a named shape (llama-2-7b, ...) or config.json, not checkpoints.")
]
ShapeGroups = Annotated[
    int | None, typer.Option("--groups", "-g", min=1, help="KV heads of the second model of --shape.")
]
Batches = Annotated[str, typer.Option(metavar="N,...", help="Sequences at a time.", callback=_numbers)]
Contexts = Annotated[
    str | None,
    typer.Option(
        metavar="N,...",
        help="Tokens in the cache, or of the source. Default: 1024, 4096 and 16384 as far as the model reads.",
        callback=_numbers,
    ),
]
TargetContext = Annotated[
    int | None, typer.Option(min=1, help="Tokens in an encoder-decoder's own cache. Default: up to 32.")
]
Caches = Annotated[
    str | None, typer.Option(metavar=",".join(CACHES), help="Caches. Default: both.", callback=_known(CACHES))
]
AttentionName = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(ATTENTIONS),
        help="Attention implementation. Default: what transformers takes.",
        callback=_known(ATTENTIONS),
    ),
]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens that a model decodes in a turn.")]
Turns = Annotated[int, typer.Option(min=1, help="Turns of each model that count.")]
PrefillTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a batch of prompts, at most. Default on a CPU: 1024.")
]
Memory = Annotated[str | None, typer.Option(help="What the largest batch may fill, such as 80GB. Default: all.")]
EngineName = Annotated[
    str, typer.Option(metavar="|".join(ENGINES), help="What runs the models.", callback=_known(ENGINES))
]
BenchSeed = Annotated[int, typer.Option(help="Seed of random weights, tokens and caches.")]
