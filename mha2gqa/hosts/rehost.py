"""Writes a checkpoint in the class of a host: G = K, every logit equal, ready to be converted as any other.

`rehost` changes no file. It gives an `Original` with the host's config, whose tensors lie where the source's lie
when they are only renamed, and otherwise are made when their bytes are read (`MadeFile`). Its tokenizer stays readable:
loaders choose the tokenizer's class by `tokenizer_config.json`, then `config.json`, then the model type, and some model
types read `tokenizer.json` alone, which older checkpoints do not have. Which host is taken is `choice.py`'s.
"""

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mha2gqa import shipped
from mha2gqa.errors import CheckpointError
from mha2gqa.families.blueprint import Blueprint, ConfigJson, Shape, said_of
from mha2gqa.files.pieces import ITEMSIZES, TensorInfo, VirtualFile, path_of
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.files.reader import Checkpoint
from mha2gqa.files.streams import Sources
from mha2gqa.hosts.choice import host_config
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Origin, Original

if TYPE_CHECKING:
    import torch

_KEPT = 4
"""Finished tensors that are kept, as readers take them in runs of bytes: one for each thread of the writer, and one."""
_FILE = "tokenizer.json"
_VOCABULARIES = ("vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


class Recent:
    """The tensors that were made last, as bytes; shared between threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int, make: "Callable[[], torch.Tensor]") -> memoryview:
        """Return the bytes of a tensor, made now unless they are kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        import torch

        content = make().contiguous().view(-1).view(torch.uint8).numpy().data
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return content


@dataclass(frozen=True, eq=False)
class MadeFile(VirtualFile):
    """A tensor that is made when it is read."""

    path: Path
    make: "Callable[[], torch.Tensor]" = field(repr=False)
    recent: Recent = field(repr=False)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the tensor's bytes from `offset` on."""
        view[:] = self.recent.get(id(self), self.make)[offset : offset + len(view)]


def rehost(original: Original, groups: int) -> Original:
    """Return a model whose own class knows only MHA in a class that can have `groups` KV heads.

    Raises:
        FamilyError: No host can express this model.
        GroupsError: None can with this number of KV heads.
        CheckpointError: The weights are quantised, or do not fit the config.
    """
    refuse_quantised(original.config_json)
    return written_as(original, *host_config(original.architecture, groups))


def written_as(original: Original, host: Host, config: ConfigJson) -> Original:
    """Return a model in the class of a host, whose config is known.

    Raises:
        CheckpointError: The weights do not fit the config.
    """
    if not host.shipped and (tokenizer := tokenizer_class(original.checkpoint)) is not None:
        config["tokenizer_class"] = tokenizer
    target = Architecture(config).blueprint
    return _written(
        original, host, config, written(original, host.tensors(original.architecture.blueprint), target), target
    )


class _Finder:
    """Finds the source's tensors in its file by their names in the module tree."""

    def __init__(self, original: Original) -> None:
        source = original.architecture.blueprint
        self._source = source
        self.infos = original.infos
        self.shapes = source.module_shapes
        self._names = _file_names(original)
        self._prefix = f"{source.prefix}."

    def tied(self, name: str) -> TensorInfo | None:
        """Return a tensor, or one that is tied to it and stands for both in the file."""
        if (info := self(name)) is not None:
            return info
        parameters = dict(self._source.model.named_parameters(remove_duplicate=False))
        same = (other for other, parameter in parameters.items() if parameter is parameters.get(name))
        found = (self(other) for other in same)
        return next((info for info in found if info is not None), None)

    def __call__(self, name: str) -> TensorInfo | None:
        """Return a tensor, also of a bare model, which has no prefix; None where the file does not have it."""
        known = name if name in self.shapes else name.removeprefix(self._prefix)
        info = self.infos.get(self._names.get(known, known))
        if info is not None and info.shape != self.shapes.get(known):
            raise _unfit(info.name, f"has shape {list(info.shape)}", self.shapes.get(known))
        return info


def _file_names(original: Original) -> dict[str, str]:
    """Return the name in the file of each tensor of the module tree that a file has under one name."""
    source, spelling = original.architecture.blueprint, original.spelling
    filed = source.filed_names() if spelling.attribute == "shapes" else {name: name for name in source.module_shapes}
    return {name: spelling.named(known) for name, known in filed.items()}


@dataclass(frozen=True)
class Written:
    """A tensor in the class of a host."""

    info: TensorInfo
    """Where its bytes lie, or what makes them when they are read."""
    sources: list[TensorInfo]
    """What it is made of."""
    is_same: bool
    """Whether its bytes are those of its source."""


def written(original: Original, recipes: Iterable[Recipe], target: Blueprint) -> list[Written]:
    """Return the tensors that a host's file has, in the order of what they are made of.

    Args:
        original: The source.
        recipes: Of the host's tensors; those that its class does not have are left out.
        target: Blueprint of the host.

    Raises:
        CheckpointError: A tensor is missing, or does not fit the config.
    """
    places, recent = {info.name: place for place, info in enumerate(original.tensors)}, Recent()
    found = sorted(_fitting(recipes, target, _Finder(original)), key=lambda one: places[one[2][0].name])
    shapes = target.module_shapes
    return [
        Written(_info(recipe, name, sources, shapes[name], recent), sources, _is_same(recipe))
        for recipe, name, sources in found
    ]


def _fitting(
    recipes: Iterable[Recipe], target: Blueprint, find: _Finder
) -> Iterator[tuple[Recipe, str, list[TensorInfo]]]:
    """Yield the recipes of the tensors that the host's file has, their names there, and what they are made of."""
    prefix = f"{target.prefix}."
    for recipe in recipes:
        name = recipe.name if recipe.name in target.module_shapes else recipe.name.removeprefix(prefix)
        if name not in target.module_shapes:
            continue
        is_needed = name in target.shapes
        found = [(one, find.tied(one) if is_needed else find(one)) for one in recipe.sources]
        missing = [one for one, info in found if info is None]
        if missing and is_needed:
            raise _unfit(missing[0], "is missing", find.shapes.get(missing[0]))
        if not missing:
            yield recipe, name, [info for _, info in found if info is not None]


def _unfit(name: str, problem: str, shape: Shape | None) -> CheckpointError:
    return CheckpointError(
        f"Tensor {name!r} {problem}",
        expected=f"shape {list(shape or ())}, by transformers' class for this config.json",
        remedy="Check that config.json and the weights belong together",
    )


def _written(
    original: Original,
    host: Host,
    config: ConfigJson,
    tensors: list[Written],
    target: Blueprint,
) -> Original:
    used = {info.name for one in tensors for info in one.sources}
    origin = Origin(
        model_type=original.origin.model_type,
        recomputed=frozenset(one.info.name for one in tensors if not one.is_same),
        dropped=tuple(info for info in original.tensors if info.name not in used),
        modules=_modules(host, original.architecture.blueprint, target),
        files=shipped.files(host.model_type) if host.shipped else tokenizer_files(original.checkpoint),
        tensors=original.tensors,
        is_own=False,
    )
    infos = tuple(one.info for one in tensors)
    return Original(original.source, replace(original.checkpoint, config=config, tensors=infos), origin)


def _is_same(recipe: Recipe) -> bool:
    return recipe.make is None and recipe.fill is None


def _info(recipe: Recipe, name: str, sources: list[TensorInfo], shape: Shape, recent: Recent) -> TensorInfo:
    first = sources[0]
    if _is_same(recipe):
        if first.shape != shape:
            raise _unfit(first.name, f"has shape {list(first.shape)}", shape)
        return replace(first, name=name)
    file = MadeFile(path_of(first.file), functools.partial(_make, recipe, sources, shape), recent)
    return TensorInfo(name, first.dtype, shape, file, 0, math.prod(shape) * ITEMSIZES[first.dtype])


def _make(recipe: Recipe, sources: list[TensorInfo], shape: Shape) -> "torch.Tensor":
    import torch

    from mha2gqa.files.dtypes import DTYPES
    from mha2gqa.files.tensors import read_tensor

    dtype = DTYPES[sources[0].dtype]
    if recipe.fill is not None:
        return torch.full(shape, recipe.fill, dtype=dtype)
    make: Callable[..., torch.Tensor] = recipe.make or torch.Tensor.clone
    files = Sources()
    try:
        made = make(*(read_tensor(files, info) for info in sources))
    finally:
        files.close()
    if not torch.isfinite(made.to(dtype)).all():
        raise CheckpointError(
            f"Tensor {recipe.name!r} does not fit into {dtype}",
            expected="weights that stay finite when layer norms are multiplied into them",
            remedy="Convert an fp32 or bf16 copy of the checkpoint",
        )
    if made.shape != shape:
        raise _unfit(sources[0].name, f"becomes {recipe.name!r} of shape {list(made.shape)}", shape)
    return made.to(dtype)


def _modules(host: Host, source: Blueprint, target: Blueprint) -> Mapping[str, str]:
    """Return the attention modules of the host's tree that have another name in the source's, with that name."""
    if host.modules is None:
        return {}
    before, after = host.modules
    layers = target.settings.num_hidden_layers - host.last_differs
    pairs = {after.format(layer): before.format(layer) for layer in range(layers)}
    return {_in_tree(new, target): _in_tree(old, source) for new, old in pairs.items()}


def _in_tree(name: str, plan: Blueprint) -> str:
    return name.removeprefix(f"{plan.prefix}.") if plan.is_base else name


def tokenizer_class(checkpoint: Checkpoint) -> str | None:
    """Return the tokenizer's class that the source's config or model type stands for; None without a tokenizer."""
    names = {companion.name for companion in checkpoint.companions}
    if not names & {_FILE, *_VOCABULARIES}:
        return None
    model_type = str(checkpoint.config["model_type"])
    name: str | None = checkpoint.config.get("tokenizer_class") or said_of(model_type, "tokenizer")
    if name is not None:
        return name
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    return TOKENIZER_MAPPING_NAMES.get(model_type)


def tokenizer_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return `tokenizer.json` where the source has only the files that its own tokenizer class reads.

    Tokenizers without such a form (BioGPT's, for one) stay as they are, and are loaded by their own class.
    """
    names = {companion.name for companion in checkpoint.companions}
    if _FILE in names or not names.intersection(_VOCABULARIES):
        return {}
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory, trust_remote_code=False)
    except Exception:  # of every kind: one that cannot be loaded here is copied as it is
        return {}
    return {_FILE: tokenizer.backend_tokenizer.to_str()} if isinstance(tokenizer, PreTrainedTokenizerFast) else {}
