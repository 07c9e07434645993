"""The two models that are timed: checkpoints that belong together, or a shape with random weights.

Found and refused by their configs alone; `load` makes them run. The second model of a shape shares with the first
every weight of the same shape, so that both fit where one and a little do. What they say means nothing here.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from mha2gqa.errors import CheckpointError, TimingError
from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.files.reader import read_json
from mha2gqa.hosts import counted, has_hosts, host_config
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.devices import DTYPES, find_device
from mha2gqa.model.kind import kind_of
from mha2gqa.model.load import load_model, set_plain_generation
from mha2gqa.record.pair import find_pair
from mha2gqa.targets.kv_heads import KvHeads
from mha2gqa.targets.latent.aim import planned_key
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.widths import Widths, divisions
from mha2gqa.verbs.bench.asked import check_subjects, shape_file
from mha2gqa.verbs.bench.options import BenchOptions

_STD = 0.02
"""Standard deviation of random weights that no initialisation of the class has set."""


@dataclass(frozen=True)
class Subject:
    """One of the two, before it is loaded."""

    name: str
    model: Architecture
    directory: Path | None
    """Where its weights are; None for random ones."""

    @cached_property
    def counted(self) -> Architecture:
        """By which its KV heads are counted, where its own class knows only MHA."""
        return counted(self.model)


@dataclass(frozen=True)
class Subjects:
    """Both, and where they will be run."""

    original: Subject
    converted: Subject
    device: str
    dtype: torch.dtype

    @property
    def both(self) -> tuple[Subject, Subject]:
        """Original and converted."""
        return self.original, self.converted

    @property
    def random_weights(self) -> bool:
        """Whether they are a shape."""
        return self.original.directory is None

    @property
    def shares_weights(self) -> bool:
        """Whether the second model has the first one's weights, wherever they have the same shape."""
        first, second = (one.model.blueprint.module_shapes.keys() for one in self.both)
        return self.random_weights and first == second

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads, and a decoder writes."""
        return kind_of(self.original.model.outline).has_encoder

    def load(self, seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Load both, ready to run."""
        if self.random_weights:
            torch.manual_seed(seed)
            with torch.device(self.device):  # drawn there: billions of numbers take a CPU a minute
                first = _random(self.original, self.dtype)
                return first, _random(self.converted, self.dtype, like=first)
        name = str(self.dtype).removeprefix("torch.")
        first, second = (load_model(Path(str(one.directory)), dtype=name, device=self.device) for one in self.both)
        return first, second


def find_subjects(options: BenchOptions) -> Subjects:
    """Find the two models that the options name.

    Raises:
        TimingError: The shape is unknown, or the models do not write text token by token.
        Mha2GqaError: As `find_pair`; the number of groups is not possible; the device is not there.
    """
    check_subjects(options)
    device = find_device(options.device)
    if device == "auto":
        raise TimingError("Models are timed on one device", expected="--device cuda, mps or cpu")
    original, converted = _shape(options) if options.shape is not None else _pair(options)
    for subject in (original, converted):
        _check_kind(subject)
    return Subjects(original, converted, device, _dtype(options.dtype, device, original.model))


def read_to(subjects: Subjects, tokens: int) -> Subjects:
    """Return a shape whose models read `tokens` tokens: random weights have no context that they were trained for."""
    sides = []
    for side in subjects.both:
        config_json = side.model.config_json
        most = config_json.get("max_position_embeddings")
        longer = {} if most is None else {"max_position_embeddings": max(most, tokens)}
        sides.append(replace(side, model=Architecture({**config_json, **longer})))
    return replace(subjects, original=sides[0], converted=sides[1])


def _check_kind(subject: Subject) -> None:
    """Refuse a model that does not write text token by token, or whose encoder reads none.

    Raises:
        TimingError: It does not.
    """
    kind = kind_of(subject.model.outline)
    if not (kind.decodes and kind.generates):
        raise TimingError(
            f"{kind.name} does not write text token by token", expected="a language model with a KV cache"
        )
    if not kind.has_encoder:
        return
    if not kind.answers_text_with_text:
        does = "writes no text" if kind.reads_tokens else f"reads {kind.reads}"
        raise TimingError(
            f"{kind.name} {does}, and of models with an encoder those are timed that answer text with text",
            expected="a text-to-text class of transformers",
        )
    if not subject.counted.cross_projections:
        raise TimingError(
            f"{kind.name} has no cross-attention of its own, so the bytes of its caches are not known by formula",
            expected="a decoder whose cross-attention has keys and values of its own",
        )


def _pair(options: BenchOptions) -> tuple[Subject, Subject]:
    pair = find_pair(options.converted, options.against)
    before = Architecture(read_json(pair.original.directory / "config.json"))  # in the class that wrote its files
    return Subject(pair.original.name, before, pair.original.directory), Subject(
        str(pair.converted), pair.result, pair.converted
    )


def _shape(options: BenchOptions) -> tuple[Subject, Subject]:
    name = Path(str(options.shape)).name.removesuffix(".json")
    if options.latent is not None and options.rope_width is not None and options.groups is None:
        model = Architecture(_shape_config(str(options.shape)))
        return Subject(name, model, None), _latent(name, model, options.latent, options.rope_width)
    if options.groups is None:
        raise AssertionError("`check_subjects` has refused a shape without a second model")
    model = Architecture(_shape_config(str(options.shape)))
    host = Architecture(host_config(model, options.groups)[1]) if has_hosts(model) else model
    converted = host.with_heads(KvHeads(options.groups).moves(host))
    return Subject(name, model, None), Subject(f"{name}, {options.groups} KV heads", converted, None)


def _latent(name: str, model: Architecture, latent: int, rope_width: int) -> Subject:
    widths, source = Widths(latent=latent, rope_width=rope_width), LatentSource.of(model)
    ((latent, rope_width),) = divisions(source.whole, widths)  # refuses what cannot be
    host = LatentHost(source, planned_key(source, widths, rope_width), latent)
    return Subject(f"{name}, latent {latent} and rotary key {rope_width}", host.model, None)


def _shape_config(shape: str) -> ConfigJson:
    """Read the config of a named shape, or of a file."""
    path = shape_file(shape)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", expected="a config.json") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no object", expected="a config.json")
    return content


def _dtype(wanted: str | None, device: str, model: Architecture) -> torch.dtype:
    if wanted is not None:
        return DTYPES[wanted]
    named = model.text_config.dtype
    return named if device != "cpu" and isinstance(named, torch.dtype) else torch.float32


def _random(subject: Subject, dtype: torch.dtype, like: PreTrainedModel | None = None) -> PreTrainedModel:
    """Return a model with random weights, of which those that `like` has in the same shape are its own."""
    outline = subject.model.outline
    build: Any = type(outline)._from_config
    with no_init_weights() if like is not None else nullcontext():
        model: PreTrainedModel = build(outline.config, dtype=dtype)
    known = {} if like is None else dict(like.named_parameters(remove_duplicate=False))
    for name, parameter in list(model.named_parameters(remove_duplicate=False)) if known else []:
        module, _, leaf = name.rpartition(".")
        if name in known and known[name].shape == parameter.shape:
            setattr(model.get_submodule(module), leaf, known[name])
        else:
            torch.nn.init.normal_(parameter, std=_STD)
    set_plain_generation(model)
    model.eval()
    return model
