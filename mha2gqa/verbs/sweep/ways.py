"""Every combination of groups, method and refinement, as options of `convert`.

`latent` stands among the methods for no KV heads at all: a latent in the cache of as many.

Whether each of them is possible is `convert`'s to say: the command plans all before it makes the first.
"""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mha2gqa.errors import SweepError
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.hosts import hosts_by_groups
from mha2gqa.methods import AUTO, METHODS, demand, text_readers
from mha2gqa.model.original import Original
from mha2gqa.targets.kv_heads import possible_groups
from mha2gqa.verbs.convert.options import ConvertOptions, Grouping, Refinement
from mha2gqa.verbs.sweep.options import SweepOptions

LATENT = "latent"
"""In the place of a method: latent attention in the cache of G KV heads."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to convert."""

    groups: int
    method: str
    refine: Refinement | None

    def learns(self, grouping: Grouping) -> bool:
        """Return whether it makes use of text."""
        return self.method == LATENT or demand(self.method, grouping, self.refine).reads_text

    def name(self, model: str) -> str:
        """Return what its checkpoint is called."""
        heads = "like" if self.method == LATENT else "gqa"
        heads = "mqa" if heads == "gqa" and self.groups == 1 else f"{heads}{self.groups}"
        return "-".join(filter(None, (model, heads, self.method, self.refine)))


def all_ways(options: SweepOptions, original: Original) -> list[Way]:
    """Return what is to be tried, group by group.

    Raises:
        SweepError: A method is unknown, or there is nothing to try.
        FamilyError: The family cannot be converted.
        CheckpointError: The weights are quantised.
    """
    if unknown := [name for name in options.methods if name not in (*METHODS, LATENT)]:
        raise SweepError(
            f"There is no method {unknown[0]!r} to sweep over",
            expected=f"some of {', '.join(METHODS)}, or {LATENT}",
            remedy="What --method auto tries is what a sweep compares" if unknown[0] == AUTO else "",
        )
    groups = options.groups or _default_groups(original)
    ways = [
        Way(groups=count, method=method, refine=refine)
        for count in groups
        for method in options.methods
        for refine in options.refine
    ]
    if not ways:
        raise SweepError("There is nothing to sweep over", expected="at least one number of groups and one method")
    if options.data and options.eval_data and not any(way.learns(options.grouping) for way in ways):
        raise SweepError(
            f"No way of this sweep ({', '.join(options.methods)}) makes use of --data",
            expected=f"--methods {' or '.join(text_readers())}, or --refine",
            remedy="Leave out --data",
        )
    return list(dict.fromkeys(ways))


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
    wanted: dict[str, Any] = {"groups": way.groups, "method": way.method, "grouping": options.grouping}
    if way.method == LATENT:
        wanted = {"latent_like_groups": way.groups}
    return ConvertOptions(
        **wanted,
        model=options.model,
        output=output,
        refine=way.refine,
        data=data if way.learns(options.grouping) else (),
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


def command_line(options: ConvertOptions) -> str:
    """Return the command that converts so, without what is the default anyway."""
    defaults = {field.name.replace("_", "-"): field.default for field in fields(ConvertOptions)}
    words = ["mha2gqa", "convert", *filter(None, [options.model])]
    latent = {"latent-like-groups": options.latent_like_groups} if options.is_latent else {}
    for name, value in {**latent, **options.recorded()}.items():
        if value != defaults[name]:
            values = value if isinstance(value, list) else [value]
            words += [word for one in values for word in (f"--{name}", str(one))]
    return shlex.join(words)
