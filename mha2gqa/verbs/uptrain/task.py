"""What differs between kinds of models that learn: how data becomes batches, and what of them is predicted.

A `Task` says it. There are two: `running_text.py` (a decoder predicts the next token of text) and `pairs.py` (an
encoder-decoder predicts a target from a source). Everything else of a run is the same for both, and does not ask of
which kind a model is.

Legend: B rows of a batch, T tokens that logits are given for, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError
from mha2gqa.verbs.uptrain.blocks import TrainingRow

Batch: TypeAlias = dict[str, torch.Tensor]
"""Arguments of a forward pass, and `labels`."""
Keyed: TypeAlias = Iterator[tuple[int, Any]]
"""What `Task.packing` takes, each with a key that its copies share."""
LossFunction: TypeAlias = Callable[..., torch.Tensor]
"""A `compute_loss_func` of transformers' Trainer."""


class Task(Protocol):
    """How models of a kind learn."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The converted checkpoint's."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a row's lists of numbers."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a row, at most."""

    @property
    def mixes(self) -> bool:
        """Whether a row holds several documents, kept apart in the attention."""

    @property
    def loss(self) -> LossFunction | None:
        """Cross-entropy where the class's own does not count tokens over a whole step; None is the class's own."""

    def check(self) -> None:
        """Refuse options and data that do not fit, before a model is loaded.

        Raises:
            TextError: The data is missing or unreadable, or an option is another task's.
        """

    def describe(self) -> str:
        """Return what is read, as a phrase."""

    def too_short(self, what: str) -> TextError:
        """Return the refusal of data that makes no row `what` (to learn from, or to measure on)."""

    def fitted(self, model: PreTrainedModel) -> Self:
        """Return the task as the loaded model takes it."""

    def training(self) -> Keyed:
        """Yield what there is to learn from, in the order of the seed."""

    def held_out(self) -> Keyed | None:
        """Return what there is to measure on, or None where a part of the training text is kept aside."""

    def packing(self) -> Callable[[Any], Iterator[TrainingRow]]:
        """Return what makes rows of each that `training` and `held_out` yield."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Return a batch of rows."""

    def targets(self, labels_BT: torch.Tensor) -> torch.Tensor:
        """Return int64 `[B, T]`: the token that the logits of each position predict, -100 for none."""

    def hidden_states(self, outputs: Any) -> Sequence[torch.Tensor]:
        """Return the outputs of the layers whose logits are compared, the embeddings first."""


def row_count(rows: Any) -> int:
    """Return the tokens that rows hold, padding of blocks included."""
    names = [name for name in rows.column_names if name != "position_ids"]
    chunks = (chunk for name in names for chunk in rows.data.table.column(name).chunks)
    return sum(int(chunk.value_lengths().sum().as_py() or 0) for chunk in chunks)
