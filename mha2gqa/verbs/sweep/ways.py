"""Every combination of groups, method, refinement and window, as options of `convert`.

`latent` stands among the methods for no KV heads at all: a latent in the cache of as many.

Whether each of them is possible is `convert`'s to say: the command plans all before it makes the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from mha2gqa.errors import SweepError
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.hosts import hosts_by_groups
from mha2gqa.methods import AUTO, METHODS, demand, text_readers
from mha2gqa.model.original import Original
from mha2gqa.targets.by_layer import heads_of
from mha2gqa.targets.kv_heads import possible_groups
from mha2gqa.texts.words import NONE
from mha2gqa.verbs.convert.options import ConvertOptions, Grouping, Refinement
from mha2gqa.verbs.sweep.options import SweepOptions

LATENT = "latent"
"""In the place of a method: latent attention in the cache of G KV heads."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to convert."""

    groups: int | None = None
    """KV heads of every layer; None with a share, or with a window alone."""
    share: float | None = None
    """Of the cache, that heads by layer may keep."""
    window: int | None = None
    method: str = ""
    """Empty where no heads are merged."""
    refine: Refinement | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether it is fewer KV heads, the same number in every layer, and nothing else."""
        return self.groups is not None and self.window is None and self.method != LATENT

    def learns(self, grouping: Grouping) -> bool:
        """Return whether it makes use of text."""
        return self.method == LATENT or bool(self.method and demand(self.method, grouping, self.refine).reads_text)

    def name(self, model: str) -> str:
        """Return what its checkpoint is called."""
        heads = "" if self.groups is None else f"{'like' if self.method == LATENT else 'gqa'}{self.groups}"
        heads = f"auto{100 * self.share:g}" if self.share is not None else heads
        window = f"w{self.window}" if self.window is not None else ""
        return "-".join(filter(None, (model, window, "mqa" if heads == "gqa1" else heads, self.method, self.refine)))


def all_ways(options: SweepOptions, original: Original) -> list[Way]:
    """Return what is to be tried: numbers of KV heads, heads by layer, and windows alone and with each of them.

    Raises:
        SweepError: A method is unknown, or there is nothing to try.
        FamilyError: The family cannot be converted.
        CheckpointError: The weights are quantised.
    """
    check_methods(options)
    merged = list(_merged(options, options.groups or _default_groups(original)))
    if options.cache and not any(way.share is not None for way in merged):
        raise SweepError(
            f"No way of this sweep ({', '.join(options.methods)}) reads the text by which --cache chooses heads",
            expected=f"--methods {' or '.join(text_readers())}, or --refine",
        )
    bounded = [
        replace(way, window=window) for window in options.window for way in (Way(), *merged) if way.method != LATENT
    ]
    ways = [*merged, *bounded]
    if not ways:
        raise SweepError("There is nothing to sweep over", expected="at least one number of groups and one method")
    if options.data and options.eval_data and not any(way.learns(options.grouping) for way in ways):
        raise SweepError(
            f"No way of this sweep ({', '.join(options.methods)}) makes use of --data",
            expected=f"--methods {' or '.join(text_readers())}, or --refine",
            remedy="Leave out --data",
        )
    return list(dict.fromkeys(ways))


def check_methods(options: SweepOptions) -> None:
    """Refuse methods that there are none of.

    Raises:
        SweepError: One is unknown.
    """
    if unknown := [name for name in options.methods if name not in (*METHODS, LATENT)]:
        raise SweepError(
            f"There is no method {unknown[0]!r} to sweep over",
            expected=f"some of {', '.join(METHODS)}, or {LATENT}",
            remedy="What --method auto tries is what a sweep compares" if unknown[0] == AUTO else "",
        )


def _merged(options: SweepOptions, groups: Sequence[int]) -> Iterator[Way]:
    """Yield the ways that merge heads: the same in every layer, then by layer, which text alone can choose."""
    kinds = [*(Way(groups=count) for count in groups), *(Way(share=share) for share in options.cache)]
    for kind, method, refine in product(kinds, options.methods, options.refine):
        way = replace(kind, method=method, refine=refine)
        if way.share is None or (way.method != LATENT and way.learns(options.grouping)):
            yield way


def _default_groups(original: Original) -> list[int]:
    refuse_quantised(original.config_json)
    model = original.architecture
    possible = [*hosts_by_groups(model)] or possible_groups(model.counts)
    return possible[-2::-1]


def convert_options(
    way: Way, options: SweepOptions, data: tuple[str, ...], column: str | None, output: Path | None
) -> ConvertOptions:
    """Return the options of `convert` for one way; text goes only to what makes use of it.

    Args:
        way: What to do.
        options: Of the sweep.
        data: Text to learn from.
        column: Column of its tables.
        output: The directory to create.
    """
    wanted: dict[str, Any] = {"window": way.window}
    if way.method == LATENT:
        wanted = {"latent_like_groups": way.groups}
    elif way.method:
        groups = way.groups if way.share is None else AUTO
        wanted |= {"groups": groups, "cache": way.share, "method": way.method, "grouping": options.grouping}
    return ConvertOptions(
        **wanted,
        model=options.model,
        output=output,
        refine=way.refine,
        data=_text_of(way, options.grouping, data),
        column=column,
        tokens=options.tokens,
        context=options.context,
        steps=options.steps,
        activation_memory=options.activation_memory,
        dtype=options.dtype,
        device=options.device,
        seed=options.seed,
        force=True,
    )


def settled(options: ConvertOptions, original: Original) -> ConvertOptions:
    """Return options that can be planned without text: heads by layer as the fewest that there can be."""
    if options.groups != AUTO:
        return options
    from mha2gqa.verbs.convert.budget import check_budget  # runs models

    check_budget(options, original)
    return replace(options, groups=(1,) * len(heads_of(original.architecture)), cache=None)


def _text_of(way: Way, grouping: Grouping, data: tuple[str, ...]) -> tuple[str, ...]:
    if not way.learns(grouping):
        return ()
    if data or way.method == LATENT or way.share is not None or demand(way.method, grouping, way.refine).needs_text:
        return data
    return (NONE,)  # what the model would write by itself is what a sweep without text evaluates on
