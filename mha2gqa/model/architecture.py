"""What a `config.json` alone says of a model: its class, its parts, its KV heads, its cache. No weights.

An `Architecture` asks transformers (`families/blueprint.py`) once, and is handed on: what is below never asks again.
The original has one (`original.py`), and so has each checkpoint that is made of it.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from mha2gqa.families.blueprint import Blueprint, ConfigJson, Spelling, blueprint, by_module, find_spelling
from mha2gqa.families.cache import CacheLayer, another, cache_layers, cross_projections, latent_layers
from mha2gqa.families.changes import Change, find_changes
from mha2gqa.families.counts import Count, Decoder, Move, decoders, find_counts, rewrite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from mha2gqa.families.attention import AttentionLayer

Moved: TypeAlias = tuple[int, int]
"""Number of a count, and the heads that it becomes."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model as its config describes it; everything is found when it is first asked for, and kept."""

    config_json: ConfigJson
    _changes: dict[tuple[Moved, Spelling], list[Change]] = field(default_factory=dict, repr=False)
    """What was asked of transformers already."""
    _before: "tuple[Architecture, Sequence[Move]] | None" = field(default=None, repr=False)
    """What this one was rewritten from, and how."""

    @cached_property
    def blueprint(self) -> Blueprint:
        """The tensors that transformers expects, and the model on the meta device."""
        return blueprint(self.config_json)

    @property
    def config(self) -> "PreTrainedConfig":
        """The config as transformers reads it, for transformers itself."""
        return self.blueprint.config

    @property
    def settings(self) -> "PreTrainedConfig":
        """What is read of the config."""
        return self.blueprint.settings

    @property
    def text_config(self) -> "PreTrainedConfig":
        """The settings of the part that reads and writes text."""
        text: PreTrainedConfig = self.settings.get_text_config(decoder=True)
        return text

    @property
    def outline(self) -> "PreTrainedModel":
        """The model on the meta device: modules and shapes, no memory."""
        return self.blueprint.model

    @property
    def model_type(self) -> str:
        """Of the class."""
        return str(self.settings.model_type)

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self.text_config.vocab_size)

    @cached_property
    def decoders(self) -> list[Decoder]:
        """The parts that own numbers of KV heads."""
        return decoders(self.blueprint)

    @property
    def query_heads(self) -> int:
        """Query heads of a layer."""
        return self.decoders[0].query_heads

    @property
    def is_latent(self) -> bool:
        """Whether attention keeps a latent vector (MLA) instead of keys and values."""
        return any(part.family.latent for part in self.decoders)

    @cached_property
    def counts(self) -> list[Count]:
        """The numbers of KV heads, the main one of each decoder first.

        Raises:
            FamilyError: The family cannot be converted, or has no number of KV heads.
            CheckpointError: A number is not a positive whole one.
        """
        return find_counts(self.config_json, self.blueprint)

    @property
    def kv_heads(self) -> int:
        """KV heads that are cached; the largest number, where layers differ; 0 where nothing is cached."""
        return max((count.heads for count in self.counts if count.part != "encoder"), default=0)

    def spelling(self, names: AbstractSet[str]) -> Spelling:
        """Return how a file with tensors of these names spells the names of the module tree."""
        return find_spelling(self.blueprint, names)

    def changes(self, moves: Sequence[Move], spelling: Spelling = by_module) -> list[Change]:
        """Return the tensors that depend on numbers of KV heads, and what they are before and after.

        Raises:
            FamilyError: A tensor depends on a number in a way that no row explains.
        """
        return [change for move in moves for change in self._change(move, spelling)]

    def _change(self, move: Move, spelling: Spelling) -> list[Change]:
        number = next(number for number, count in enumerate(self.counts) if count is move[0])
        key = (number, move[1]), spelling
        if key not in self._changes:
            self._changes[key] = find_changes(self.config_json, self.blueprint, spelling, *move)
        return self._changes[key]

    def with_heads(self, moves: Sequence[Move]) -> "Architecture":
        """Return the architecture with other numbers of KV heads."""
        return Architecture(rewrite(self.config_json, moves), _before=(self, moves))

    def dependent(self, number: int) -> list[Change]:
        """Return the tensors of the module tree that depend on one of `counts`, by any other number of heads.

        What was asked for a conversion answers this too, so that no class is built for it alone.
        """
        if self._before is not None and self._counts_as(self._before[0]):
            source, moves = self._before
            known = [move for move in moves if move[0] is source.counts[number] and move[1] != move[0].heads]
            return [change.reversed() for change in source.changes(known)] if known else source.dependent(number)
        count = self.counts[number]
        asked = (heads for (place, heads), _ in self._changes if place == number and heads != count.heads)
        return self._change((count, next(asked, another(count))), by_module)

    def _counts_as(self, source: "Architecture") -> bool:
        """Return whether numbers of heads stand in the same places; layers that differed may have one together now."""
        return [count.paths for count in self.counts] == [count.paths for count in source.counts]

    @cached_property
    def cached(self) -> list[CacheLayer]:
        """The layers that have a KV cache, in the order of the module tree.

        Raises:
            FamilyError: The family has no number of KV heads, or cannot be converted.
        """
        if self.is_latent:
            return latent_layers(self.blueprint)
        return cache_layers(self.blueprint, self._dependent())

    @cached_property
    def cross_projections(self) -> frozenset[str]:
        """The tensors of the module tree that compute the keys and values of cross-attention."""
        return frozenset() if self.is_latent else cross_projections(self._dependent())

    def _dependent(self) -> list[tuple[Count, Change]]:
        return [(count, change) for number, count in enumerate(self.counts) for change in self.dependent(number)]

    @property
    def attention_modules(self) -> list[str]:
        """The modules that compute keys and values per KV head, by their names in the module tree.

        Modules that read another layer's keys and values are left out.
        """
        return [layer.module for layer in self.cached]

    def attention_layers(self, moves: Sequence[Move]) -> "list[AttentionLayer]":
        """Return the attention layers that other numbers of KV heads concern, each module once."""
        return self.layers_of([(move[0], self.changes([move])) for move in moves])

    def layers_of(self, moved: Iterable[tuple[Count, list[Change]]]) -> "list[AttentionLayer]":
        """Return the attention layers that changes of tensors concern, each module once.

        Args:
            moved: Each number of KV heads that changes, and what that changes in the module tree.
        """
        from mha2gqa.families.modules import attention_layers  # it takes modules of torch apart

        return attention_layers(self.blueprint, moved)
