"""What can be asked of `convert` and `expand`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mha2gqa.methods import AUTO, demand

Grouping = Literal["contiguous", "similar"]
Refinement = Literal["refit", "distil", "joint"]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of `convert`."""

    model: str | None = None
    """Local directory or Hub id (`org/name`, `org/name@revision`); None is the reference checkpoint."""
    groups: int | Mapping[str, int]
    """KV heads of the result, G; or of each kind of attention that changes, of `decoder`, `cross` and `encoder`. A
    number alone stands for all kinds but an encoder's."""
    output: Path | None = None
    """Directory to create; None is `./<name>-gqa<G>`, or `./<name>-mqa` for one group."""
    method: str = "mean"
    """How the KV heads of a group become one: a name in `methods.METHODS`, or `auto`."""
    grouping: Grouping = "contiguous"
    """Which KV heads share a group: neighbours, or those whose merge loses the least."""
    refine: Refinement | None = None
    """How far to improve the result on text: output projections in closed form, each layer trained, all of them."""
    data: tuple[str, ...] = ()
    """Calibration text: files, Hub data sets, or `self` for text that the model writes. Empty is no text, or where
    text is needed that of the reference checkpoint."""
    column: str | None = None
    """Column of tables that holds the text; None takes `text`, else the only one with strings."""
    tokens: int = 262_144
    """Tokens of calibration text, at most."""
    context: int | None = None
    """Tokens of a block of text; None is as many as the model reads, up to 2048."""
    steps: int = 300
    """Training steps of each layer (`distil`), and of all together (`joint`)."""
    activation_memory: str = "8GB"
    """Activations of a refinement to hold in memory; the rest goes to disk beside the output."""
    max_ppl_increase: float = 0.01
    """Largest increase of the perplexity that `auto` is content with, as a fraction."""
    dtype: str | None = None
    """Dtype to run the model in; None is the checkpoint's own on an accelerator, and float32 on a CPU."""
    device: str | None = None
    """Device to run the model on; None takes an accelerator when there is one."""
    seed: int = 0
    """Seed of everything that draws numbers."""
    max_shard_size: str | None = None
    """Largest weight file, for example `5GB`; None keeps the source's division into files."""
    force: bool = False
    """Replace an output that an earlier run made."""
    dry_run: bool = False
    """Plan and check, write nothing."""

    def recorded(self) -> dict[str, object]:
        """Return the options that change the result, by their names on the command line; those of text only with it."""
        recorded: dict[str, object] = {
            "groups": self.groups if isinstance(self.groups, int) else dict(self.groups),
            "method": self.method,
            "grouping": self.grouping,
            "seed": self.seed,
        }
        chooses = self.method == AUTO
        trains = self.refine in ("distil", "joint") or chooses
        if self.data or demand(self.method, self.grouping, self.refine).needs_text:
            used: dict[str, object] = {"data": list(self.data), "refine": self.refine, "column": self.column}
            used |= {"tokens": self.tokens, "context": self.context, "steps": self.steps if trains else None}
            used |= {"max-ppl-increase": self.max_ppl_increase if chooses else None}
            used |= {"dtype": self.dtype, "device": self.device}
            recorded |= {name: value for name, value in used.items() if value not in (None, [])}
        return recorded


@dataclass(frozen=True, kw_only=True)
class ExpandOptions:
    """Options of `expand`."""

    model: str
    """Local directory or Hub id of a GQA or MQA checkpoint."""
    heads: int | None = None
    """KV heads of the result; None is one per query head (MHA)."""
    output: Path
    """Directory to create."""
    max_shard_size: str | None = None
    """Largest weight file, for example `5GB`; None keeps the source's division into files."""
    force: bool = False
    """Replace an output that an earlier run made."""
    dry_run: bool = False
    """Plan and check, write nothing."""
