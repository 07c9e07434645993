"""What can be asked of `convert`: which kinds of attention become how many KV heads, by what, and improved on what.

-g 4                        self- and cross-attention; an encoder that a decoder reads stays as it is
-g 4 --attention encoder    that kind alone
-g decoder=8,cross=4        each kind its own number
--window 4096               no head changes: each token sees the last 4096 tokens; also beside -g
--latent 512 --rope-width 64      no KV heads: one latent for all heads (MLA)
--latent-like-groups 4            the same, in the cache of 4 KV heads; text divides it
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from mha2gqa.errors import OptionError
from mha2gqa.methods import AUTO, demand
from mha2gqa.options import Option, Options, at_least, one_of, parameters, read, share
from mha2gqa.verbs.convert.parsers import (
    known_methods,
    read_attention,
    read_groups,
    read_layers,
    read_window,
    recorded_groups,
)
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
    Private,
    PushToHub,
    Seed,
    ShardSize,
    check_private,
)

Grouping = Literal["contiguous", "similar"]
Refinement = Literal["refit", "distil", "joint"]


GroupingName = Annotated[Grouping, Option("Which heads share one.")]
CalibrationTokens = Annotated[
    int, Option("Tokens of calibration text, at most: 65536, 256K.", parse=at_least(2), metavar="N")
]
Steps = Annotated[int, Option("Training steps of --refine distil and joint.", least=1)]
STEPS = 1000
"""What `Steps` are where nothing is said: table in docs/concepts/refine.md."""
ActivationMemory = Annotated[str, Option("Activations in memory; the rest goes to disk.")]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(Options):
    """Convert a checkpoint to fewer KV heads, a window or a latent."""

    model: Model = None
    groups: Annotated[
        int | Mapping[str, int] | tuple[int, ...] | str | None,
        Option(
            "KV heads of the result (1 makes MQA); decoder=8,cross=4 of each kind of attention; 2,2,4,8 of each layer; "
            "auto: of each layer what it needs, under --cache.",
            parse=read_groups,
            metavar="G",
            flags=("--groups", "-g"),
        ),
    ] = None
    """KV heads of the result, G; or of each kind of attention that changes, of `decoder`, `cross` and `encoder`. A
    number alone stands for all kinds but an encoder's."""
    cache: Annotated[
        float | None,
        Option("Of --groups auto: share of the KV cache to keep. Default: 50%.", parse=share(1.0), metavar="SHARE"),
    ] = None
    """Share of the KV cache that `groups="auto"` may keep, a half where it is None; each layer gets heads
    by what it loses on text. With `window` some layers get that, too, and the share is of a text as long as the model
    reads. Without `groups` it means `auto`."""
    window: Annotated[
        int | None, Option("Tokens in reach of each: the last W, also beside --groups.", parse=read_window, metavar="W")
    ] = None
    """Tokens of a sliding window, W, in the place of `groups` or beside them; None leaves what is there."""
    window_layers: Annotated[
        str | None,
        Option("Layers that get the window, such as 0-11,14. Default: all.", parse=read_layers, metavar="LAYERS"),
    ] = None
    """Numbers of the layers that get the window, from 0 on; or `auto` for as many as `max_ppl_increase` allows, by what
    each loses on text."""
    latent: Annotated[
        int | None,
        Option(
            "In the place of KV heads: width of one latent (MLA). 512 with --rope-width 64 is what kernels take.",
            least=2,
        ),
    ] = None
    """In the place of `groups`: width C of the latent of the result."""
    rope_width: Annotated[
        int | None, Option("Width of the rotary key beside the latent. Default: chosen by loss on text.", least=2)
    ] = None
    """Width R of the rotary key that all heads share; None is chosen among a few by loss on text kept aside."""
    latent_like_groups: Annotated[
        int | None,
        Option("In their place, too: latent and rotary key in the cache of so many KV heads.", least=1, metavar="G"),
    ] = None
    """In the place of `groups` and `latent`: C + R is the cache of so many KV heads, divided by loss on text."""
    rope_frequencies: Annotated[
        str,
        Option(
            "Speeds of the rotary key: those that engines know, or any (for transformers alone).",
            metavar="portable|free",
        ),
    ] = "portable"
    """`portable`, `free`, or the name of a rotary key, as a record has it."""
    output: Annotated[Path | None, Option("Directory to create.", flags=("--output", "-o"))] = None
    """Directory to create; None is `./<name>-gqa<G>`, `./<name>-mqa` for one group, `./<name>-mla<C>-<R>`."""
    attention: InitVar[
        Annotated[
            tuple[str, ...] | None,
            Option(
                "Kinds of attention to convert: self, cross, encoder; by default self,cross.",
                parse=read_attention,
                metavar="KINDS",
            ),
        ]
    ] = None
    """Kinds of attention that `groups`, a number alone, is for; `groups` then names them."""
    method: Annotated[
        str, Option("How a group becomes one head.", parse=one_of(known_methods), metavar="|".join(known_methods()))
    ] = "mean"
    grouping: GroupingName = "contiguous"
    refine: Annotated[
        Refinement | None,
        Option("Improve the result on text: refit values and outputs, train each layer, train all of them together."),
    ] = None
    data: Annotated[
        tuple[str, ...],
        Option("Calibration text: files, Hub data sets, `self`, `random` or `none`; repeatable.", is_repeatable=True),
    ] = ()
    """Calibration text: files, Hub data sets, `self` for text that the model writes, `random` for random tokens,
    `none` for none. Empty is some
    that the model writes where a method makes use of it, and where text is needed that of the reference checkpoint."""
    column: Column = None
    tokens: CalibrationTokens = 262_144
    context: Context = None
    steps: Steps = STEPS
    activation_memory: ActivationMemory = "8GB"
    max_ppl_increase: Annotated[
        float,
        Option(
            "What --method auto and --window-layers auto are content with, such as 1%.", parse=share(), metavar="SHARE"
        ),
    ] = 0.01
    dtype: Dtype = None
    device: Device = None
    seed: Seed = 0
    max_shard_size: ShardSize = None
    push_to_hub: PushToHub = None
    private: Private = False
    force: Force = False
    dry_run: DryRun = False
    as_json: ClassVar[AsJson] = False
    config: ClassVar[ConfigFile] = None

    def __post_init__(self, attention: tuple[str, ...] | None) -> None:
        super().__post_init__()
        self._check_target(attention)
        check_private(self.push_to_hub, private=self.private)
        if attention is not None:
            if not isinstance(self.groups, int):
                raise OptionError("--attention does not go with a --groups that names the kinds itself.")
            kinds = read(parameters(ConvertOptions)["attention"], attention)
            object.__setattr__(self, "groups", dict.fromkeys(kinds, self.groups))

    @property
    def is_latent(self) -> bool:
        """Whether a latent was asked for, in the place of KV heads."""
        return self.latent is not None or self.latent_like_groups is not None

    def _check_target(self, attention: tuple[str, ...] | None) -> None:
        """Refuse options that say nothing of what attention shall become, or that go with something else.

        Raises:
            OptionError: There are such.
        """
        if self.cache is not None and self.groups is None and not self.is_latent:
            object.__setattr__(self, "groups", AUTO)
        asked = {"--groups": self.groups, "--window": self.window}
        asked |= {"--latent": self.latent, "--latent-like-groups": self.latent_like_groups}
        given = [name for name, value in asked.items() if value is not None]
        if not given:
            ways = "--groups or --window, --latent, or --latent-like-groups"
            raise OptionError(f"Nothing says what attention shall become: give {ways}.")
        if self.is_latent and self.window is not None:
            raise OptionError(f"{given[-1]} does not go with --window: no class has both, a latent and windows.")
        if self.is_latent and len(given) > 1:
            raise OptionError(f"{' and '.join(given)} exclude one another: give one of them.")
        self._check_by_layer()
        self._check_latent()
        self._check_random()
        heads = {"--method": self.method != "mean", "--grouping": self.grouping != "contiguous"}
        heads["--attention"] = attention is not None
        if not self.is_latent:
            heads["--refine"] = self.refine is not None
            heads["--data"] = bool(self.data) and self.window_layers != AUTO
        why = "a latent has no KV heads" if self.is_latent else "a window alone changes no tensor"
        for name, is_given in heads.items():
            if self.groups is None and is_given:
                raise OptionError(f"{name} goes with --groups: {why}.")

    def _check_by_layer(self) -> None:
        """Refuse what goes with a window of some layers, or with heads by layer, and not with what was asked for."""
        if self.window is None and self.window_layers is not None:
            raise OptionError("--window-layers goes with --window.")
        if self.cache is not None and self.groups != AUTO:
            raise OptionError("--cache goes with --groups auto, and is the share of the KV cache to keep.")
        if self.groups == AUTO and self.method == AUTO:
            raise OptionError("--groups auto does not go with --method auto: give one of the two.")
        if self.groups == AUTO and self.window_layers is not None:
            raise OptionError("--groups auto does not go with --window-layers: it chooses them, under --cache.")

    def _check_latent(self) -> None:
        """Refuse what goes with a latent, and not with what was asked for."""
        if self.rope_frequencies != "portable" and not self.is_latent:
            raise OptionError("--rope-frequencies goes with --latent or --latent-like-groups.")
        if self.rope_width is not None and self.latent is None:
            raise OptionError("--rope-width goes with --latent: text divides the cache of --latent-like-groups.")

    def _check_random(self) -> None:
        """Refuse random tokens for what goes by losses."""
        asked = {"--refine": self.refine is not None, "--method auto": self.method == AUTO}
        asked |= {"--groups auto": self.groups == AUTO, "--window-layers auto": self.window_layers == AUTO}
        asked |= {"a latent": self.is_latent}
        if self.data == ("random",) and (names := [name for name, is_given in asked.items() if is_given]):
            raise OptionError(
                f"--data random does not go with {names[0]}: what is chosen or learned by losses needs text."
            )

    @property
    def reads_text(self) -> bool:
        """Whether text was named."""
        return bool(self.data) and self.data != ("none",)

    def recorded(self) -> dict[str, object]:
        """Return the options that change the result, by their names on the command line; those of text only with it.

        Those of a latent are its target's to tell, when text has chosen.
        """
        recorded: dict[str, object] = {} if self.window is None else {"window": self.window}
        recorded |= {} if self.window_layers is None else {"window-layers": self.window_layers}
        if self.groups is not None:
            recorded |= {
                "groups": recorded_groups(self.groups),
                "method": self.method,
                "grouping": self.grouping,
            }
        recorded["seed"] = self.seed
        chooses = self.method == AUTO
        trains = self.refine in ("distil", "joint") or chooses
        recorded |= {"data": list(self.data)} if self.data else {}
        if self.reads_text or self.is_latent or demand(self.method, self.grouping, self.refine).needs_text:
            used: dict[str, object] = {"refine": self.refine, "column": self.column}
            used |= {"tokens": self.tokens, "context": self.context, "steps": self.steps if trains else None}
            used |= {"max-ppl-increase": self.max_ppl_increase if chooses else None}
            used |= {"dtype": self.dtype, "device": self.device}
            recorded |= {name: value for name, value in used.items() if value not in (None, [])}
        return recorded
