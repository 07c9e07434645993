"""What can be asked of `convert`: which kinds of attention become how many KV heads, by what, and improved on what.

-g 4                        self- and cross-attention; an encoder that a decoder reads stays as it is
-g 4 --attention encoder    that kind alone
-g decoder=8,cross=4        each kind its own number
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mha2gqa.errors import OptionError
from mha2gqa.methods import AUTO, METHODS, demand
from mha2gqa.options import Option, Options, at_least, one_of, parameters, read, share
from mha2gqa.verbs.options import (
    AsJson,
    Column,
    ConfigFile,
    Context,
    Device,
    DryRun,
    Dtype,
    Force,
    Model,
    Seed,
    ShardSize,
)

Grouping = Literal["contiguous", "similar"]
Refinement = Literal["refit", "distil", "joint"]
_PARTS = ("decoder", "cross", "encoder")


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a valid integer.") from None


def _part(name: str) -> str:
    part = "decoder" if name == "self" else name
    if part not in _PARTS:
        raise ValueError(f"{name!r} is no kind of attention: self (or decoder), cross, encoder.")
    return part


def _groups(value: Any) -> int | dict[str, int]:
    """Read a number, `decoder=8,cross=4`, or the same as a mapping."""
    if isinstance(value, Mapping):
        return {_part(name): _number(str(number)) for name, number in value.items()}
    text = str(value)
    if "=" not in text:
        return _number(text)
    pairs = [entry.partition("=") for entry in text.split(",")]
    return {_part(name.strip()): _number(number) for name, _, number in pairs}


def _attention(value: Any) -> tuple[str, ...]:
    """Read `self,cross`, or the same as a sequence."""
    names = value.split(",") if isinstance(value, str) else value
    return tuple(_part(name.strip()) for name in names)


def _methods() -> tuple[str, ...]:
    return (*METHODS, AUTO)


GroupingName = Annotated[Grouping, Option("Which heads share one.")]
CalibrationTokens = Annotated[
    int, Option("Tokens of calibration text, at most: 65536, 256K.", parse=at_least(2), metavar="N")
]
Steps = Annotated[int, Option("Training steps of --refine distil and joint.", least=1)]
ActivationMemory = Annotated[str, Option("Activations in memory; the rest goes to disk.")]
"""Activations of a refinement to hold in memory; the rest goes to disk beside the output."""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Convert a checkpoint to fewer KV heads."""

    model: Model = None
    groups: Annotated[
        int | Mapping[str, int],
        Option(
            "KV heads of the result (1 makes MQA); with decoder=8,cross=4 of each kind of attention.",
            parse=_groups,
            metavar="G",
            flags=("--groups", "-g"),
        ),
    ]
    """KV heads of the result, G; or of each kind of attention that changes, of `decoder`, `cross` and `encoder`. A
    number alone stands for all kinds but an encoder's."""
    output: Annotated[Path | None, Option("Directory to create.", flags=("--output", "-o"))] = None
    """Directory to create; None is `./<name>-gqa<G>`, or `./<name>-mqa` for one group."""
    attention: InitVar[
        Annotated[
            tuple[str, ...] | None,
            Option(
                "Kinds of attention to convert: self, cross, encoder; by default self,cross.",
                parse=_attention,
                metavar="KINDS",
            ),
        ]
    ] = None
    """Kinds of attention that `groups`, a number alone, is for; `groups` then names them."""
    method: Annotated[
        str, Option("How a group becomes one head.", parse=one_of(_methods), metavar="|".join(_methods()))
    ] = "mean"
    grouping: GroupingName = "contiguous"
    refine: Annotated[
        Refinement | None,
        Option("Improve the result on text: refit values and outputs, train each layer, train all of them together."),
    ] = None
    """How far to improve the result on text: output projections in closed form, each layer trained, all of them."""
    data: Annotated[
        tuple[str, ...],
        Option("Calibration text: text, jsonl, csv, parquet, Hub data set, or `self`; repeatable.", is_repeatable=True),
    ] = ()
    """Calibration text: files, Hub data sets, or `self` for text that the model writes. Empty is no text, or where
    text is needed that of the reference checkpoint."""
    column: Column = None
    tokens: CalibrationTokens = 262_144
    context: Context = None
    steps: Steps = 300
    activation_memory: ActivationMemory = "8GB"
    max_ppl_increase: Annotated[
        float, Option("What --method auto is content with, such as 1%.", parse=share(), metavar="SHARE")
    ] = 0.01
    """Largest increase of the perplexity that `auto` is content with, as a fraction."""
    dtype: Dtype = None
    device: Device = None
    seed: Seed = 0
    max_shard_size: ShardSize = None
    force: Force = False
    dry_run: DryRun = False
    as_json: ClassVar[AsJson] = False
    config: ClassVar[ConfigFile] = None

    def __post_init__(self, attention: tuple[str, ...] | None) -> None:
        super().__post_init__()
        if attention is not None:
            if not isinstance(self.groups, int):
                raise OptionError("--attention does not go with a --groups that names the kinds itself.")
            kinds = read(parameters(ConvertOptions)["attention"], attention)
            object.__setattr__(self, "groups", dict.fromkeys(kinds, self.groups))

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
