"""The original: a checkpoint that is read once, with all that is known of it, and handed on.

    Original.find(model)      found by its name, read and checked; made at the beginning of each verb
    original.architecture     what its config says (`architecture.py`)
    original.origin           the class that its files were written by, and what has become of them since

A model whose own class cannot be converted is written in another (`hosts/rehost.py`), which gives an `Original` again:
its tensors lie where the source's lie, or are made when they are read. Nothing below has to ask whether that was done.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mha2gqa.errors import CheckpointError, FamilyError
from mha2gqa.families.blueprint import ConfigJson, Spelling, fit
from mha2gqa.files.pieces import TensorInfo
from mha2gqa.files.reader import Checkpoint, has_weights, read_checkpoint, read_json
from mha2gqa.files.source import Source, find_source
from mha2gqa.files.working import refuse_unfinished
from mha2gqa.files.wrappers import shortened
from mha2gqa.model.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The class that wrote a checkpoint's files, and what was done to have it in the class that it has now."""

    model_type: str
    """Of the class that wrote the files."""
    recomputed: frozenset[str] = frozenset()
    """Tensors whose bytes are not those of one of the source's."""
    dropped: tuple[TensorInfo, ...] = ()
    """Tensors of the source's file that hold no weights."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Attention module -> the one of the source's class whose output is the same; empty where names are the same."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files to write beside the weights, name -> text: the code of a class that ships with the checkpoint, or a
    tokenizer in the form that the class reads."""
    tensors: tuple[TensorInfo, ...] = ()
    """Those of the source's files, where the class is another now."""
    is_own: bool = True
    """Whether the class is still the one that wrote the files."""
    output_scale: float | None = 1.0
    """What outputs of attention are multiplied with in the result; None where they are changed otherwise."""

    def compared(self, modules: Iterable[str]) -> dict[str, str]:
        """Return the modules whose outputs the source's class has, too, and what they are called there."""
        if self.output_scale is None:
            return {}
        return {name: self.modules.get(name, name) for name in modules if not self.modules or name in self.modules}


@dataclass(frozen=True)
class Original:
    """A checkpoint, and where it came from."""

    source: Source
    checkpoint: Checkpoint
    """Its files: config, tensors as byte ranges, what lies beside them; no tensors where there are no weights yet."""
    origin: Origin

    @classmethod
    def find(cls, model: str | None) -> "Original":
        """Find a model by its name, and read what its files say.

        Raises:
            SourceError: There is no such directory or repository, or it cannot be reached or read.
            CheckpointError: Its files are missing, malformed, contradictory or unsafe.
        """
        source = find_source(model)
        refuse_unfinished(source.directory)
        return cls.read(source)

    @classmethod
    def sketch(cls, model: str | None) -> "Original":
        """Find a model as `find` does; weights that are not here are not fetched, and need not be there."""
        source = find_source(model, small=True)
        refuse_unfinished(source.directory)
        if has_weights(source.directory):
            return cls.read(source)
        config = read_json(source.directory / "config.json")
        return cls._of(source, Checkpoint(source.directory, config, (), {}, ()))

    @classmethod
    def read(cls, source: Source) -> "Original":
        """Read a model that was found."""
        return cls._of(source, read_checkpoint(source.directory))

    @classmethod
    def at(cls, directory: Path) -> "Original":
        """Read the checkpoint in a directory."""
        return cls.read(find_source(str(directory)))

    @classmethod
    def _of(cls, source: Source, checkpoint: Checkpoint) -> "Original":
        original = cls(source, checkpoint, Origin(model_type=str(checkpoint.config.get("model_type"))))
        return original._shortened() if checkpoint.tensors else original

    def _shortened(self) -> "Original":
        """Return the checkpoint without a prefix of the trainer's own, where nothing in the file fits with it."""
        names = [info.name for info in self.tensors]
        for prefix, shorter in shortened(names):
            try:
                if self._fit(names):
                    break
                if self._fit(shorter):
                    return self._renamed(shorter, prefix)
            except (CheckpointError, FamilyError):  # said where the model is needed, and what it is needed for
                break
        return self

    def _renamed(self, names: Sequence[str], prefix: str) -> "Original":
        tensors = tuple(replace(info, name=name) for info, name in zip(self.tensors, names, strict=True))
        prefixes = (*self.checkpoint.unwrapped, prefix)
        return replace(self, checkpoint=replace(self.checkpoint, tensors=tensors, unwrapped=prefixes))

    def _fit(self, names: Sequence[str]) -> int:
        """Return how many names of a file are those of the model."""
        return fit(self.architecture.blueprint, self.architecture.spelling(frozenset(names)), frozenset(names))

    @cached_property
    def architecture(self) -> Architecture:
        """What the config says."""
        return Architecture(self.checkpoint.config)

    @property
    def config_json(self) -> ConfigJson:
        """The config.json."""
        return self.checkpoint.config

    @property
    def directory(self) -> Path:
        """Where the files lie."""
        return self.source.directory

    @property
    def name(self) -> str:
        """Hub id or directory."""
        return self.source.hub_id or str(self.source.directory)

    @property
    def is_as_filed(self) -> bool:
        """Whether transformers finds in the files themselves what is known of them here."""
        return self.origin.is_own and not self.checkpoint.unwrapped and self.checkpoint.has_plain_index

    def rewritten(self, architecture: Architecture) -> "Original":
        """Return the same files under another config."""
        return replace(self, checkpoint=replace(self.checkpoint, config=architecture.config_json))

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """In file order."""
        return self.checkpoint.tensors

    @property
    def filed(self) -> tuple[TensorInfo, ...]:
        """The tensors as they lie in the files, whatever class they are written in now."""
        return self.origin.tensors or self.tensors

    @cached_property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Name in the file -> tensor."""
        return {info.name: info for info in self.tensors}

    @cached_property
    def spelling(self) -> Spelling:
        """How the file spells the names of the module tree."""
        return self.architecture.spelling(self.infos.keys())

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(info.size for info in self.tensors)

    @cached_property
    def dtype(self) -> str | None:
        """The dtype of most of the weights, as in a safetensors header; None without weights."""
        sizes: Counter[str] = Counter()
        for info in self.tensors:
            sizes[info.dtype] += info.size
        return sizes.most_common(1)[0][0] if sizes else None
