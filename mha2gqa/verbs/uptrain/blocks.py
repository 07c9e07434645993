"""Training text as documents, and as blocks of tokens.

Documents are shuffled through a buffer, and a part of them kept aside for measuring, by a checksum of their text, so
that copies are kept from training as well, in any order and on any machine. Text of too few documents is cut into
pieces at line ends first.

A block holds documents packed one behind the other, with their boundaries kept. Each document's positions begin at 0,
by which transformers' attention masks tell packed documents apart; its first token is not predicted from the document
before. For classes whose attention does not look at positions (state spaces, for one) a block holds one document and
padding. Blocks are written once, as an Arrow file of the `datasets` library, and read from there.

Legend: B blocks of a batch, T tokens of a block.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import datasets
import torch
import xxhash
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import TextError

TrainingRow: TypeAlias = Mapping[str, Sequence[int]]
"""Lists of numbers by their names: a block, or what else is a row on disk."""
Document = TypeVar("Document", bound=Sized)

_BUFFER = 64 << 20
"""Characters that are shuffled among one another."""
_HELD_OUT = 20
"""One document in so many is kept aside."""
_FEW = 100
"""Documents below which text is cut up."""
_PADDING = -1
"""Position of what is no token."""
_AT_ONCE = 1 << 20
"""Characters that are tokenised at a time."""
_ROWS = 256
"""Blocks that are written at a time."""


def shuffled(documents: Iterable[Document], seed: int, characters: Callable[[Any], int] = len) -> Iterator[Document]:
    """Yield documents in an order that depends on the seed alone; a bounded number of them is in memory.

    Args:
        documents: Texts, or what else `characters` gives the size of.
        seed: Of the order.
        characters: Size of one.
    """
    generator = random.Random(seed)  # noqa: S311 (no secret)
    buffer: list[Document] = []
    size = 0
    for document in documents:
        buffer.append(document)
        size += characters(document)
        while size > _BUFFER and len(buffer) > 1:
            chosen = generator.randrange(len(buffer))
            buffer[chosen], buffer[-1] = buffer[-1], buffer[chosen]
            size -= characters(buffer[-1])
            yield buffer.pop()
    generator.shuffle(buffer)
    yield from buffer


def cut_if_few(documents: Iterable[str]) -> Iterator[str]:
    """Yield documents; where there are few, pieces of them, cut at line ends (or anywhere, in one huge line)."""
    stream = iter(documents)
    first = list(itertools.islice(stream, _FEW))
    if len(first) == _FEW:
        yield from itertools.chain(first, stream)
        return
    size = max(1, sum(map(len, first)) // _FEW)
    for document in first:
        yield from _pieces(document, size)


def _pieces(document: str, size: int) -> Iterator[str]:
    start = 0
    while start < len(document):
        end = start + size
        line_end = document.find("\n", end, end + size)
        end = line_end + 1 if line_end >= 0 else end
        yield document[start:end]
        start = end


def key_of(document: str) -> int:
    """Return what a document and its copies have in common."""
    return xxhash.xxh3_64_intdigest(document.encode("utf-8", "surrogatepass"))


def is_held_out(key: int) -> bool:
    """Return whether documents of this key are kept aside."""
    return key % _HELD_OUT == 0


@dataclass
class Packer:
    """Makes blocks of documents."""

    context: int
    """T."""
    bos: int | None
    """Stands before each document."""
    reopens: bool
    """Whether the part of a document that begins a block begins with BOS as well."""
    mixes: bool
    """Whether a block may hold several documents."""
    _ids: list[int] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int]) -> Iterator[TrainingRow]:
        """Take in a document; yield the blocks that are full with it."""
        rest = [self.bos, *ids] if self.bos is not None and list(ids[:1]) != [self.bos] else list(ids)
        at = 0
        while at < len(rest):
            if at and self.reopens and self.bos is not None:
                at -= 1
                rest[at] = self.bos
            piece = rest[at : at + self.context - len(self._ids)]
            at += len(piece)
            self._ids += piece
            self._positions += range(len(piece))
            if len(self._ids) == self.context:
                yield self._take()
        if not self.mixes and len(self._ids) > 1:
            padding = self.context - len(self._ids)
            self._ids += [0] * padding
            self._positions += [_PADDING] * padding
            yield self._take()

    def _take(self) -> TrainingRow:
        row = {"input_ids": self._ids, "position_ids": self._positions}
        self._ids, self._positions = [], []
        return row


def packer_for(tokenizer: PreTrainedTokenizerBase, context: int, *, mixes: bool) -> Packer:
    """Return a packer that treats BOS as `texts.blocks.pack` does."""
    bos = tokenizer.bos_token_id
    opens = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [bos]
    return Packer(context=context, bos=bos, reopens=opens, mixes=mixes)


def tokenise(document: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[int]:
    """Return the tokens of a document, without special ones.

    Raises:
        TextError: The tokenizer knows more tokens than the model.
    """
    ids: list[int] = []
    for start in range(0, len(document), _AT_ONCE):
        ids += tokenizer(document[start : start + _AT_ONCE], add_special_tokens=False, verbose=False)["input_ids"]
    check_vocabulary(ids, vocabulary)
    return ids


def check_vocabulary(ids: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that the model does not know.

    Raises:
        TextError: There is one.
    """
    if ids and max(ids) >= vocabulary:
        raise TextError(
            f"The tokenizer gives token {max(ids)}, and the model knows {vocabulary}",
            expected="the tokenizer of the model",
            remedy="Check the tokenizer's files beside the weights",
        )


class BlockFile:
    """An Arrow file of rows that appears at once and whole."""

    def __init__(self, path: Path, columns: Sequence[str] = ("input_ids", "position_ids")) -> None:
        self.path = path
        self.blocks = 0
        self._partial = path.with_suffix(".partial")
        self._rows: list[TrainingRow] = []
        kinds = datasets.Features(dict.fromkeys(columns, datasets.List(datasets.Value("int32"))))
        self._writer = ArrowWriter(path=str(self._partial), features=kinds)

    def add(self, row: TrainingRow) -> None:
        """Take in a block."""
        self._rows.append(row)
        self.blocks += 1
        if len(self._rows) == _ROWS:
            self._flush()

    def finish(self) -> None:
        """Put the file in its place."""
        self._flush()
        self._writer.finalize()
        self._partial.rename(self.path)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch({name: [row[name] for row in self._rows] for name in self._rows[0]})
            self._rows = []


def read_blocks(path: Path) -> Any:
    """Return the blocks of a file, memory-mapped."""
    return datasets.Dataset.from_file(str(path)).with_format("numpy")


def collate(rows: Sequence[Any], *, mixes: bool) -> dict[str, torch.Tensor]:
    """Make a batch of blocks.

    Args:
        rows: The blocks.
        mixes: Whether the model is told the positions.

    Returns:
        `input_ids`, `labels` (-100 where nothing is predicted) and the positions, each int64 `[B, T]`.
    """
    ids_BT, positions_BT = (
        torch.stack([torch.as_tensor(row[name], dtype=torch.int64) for row in rows])
        for name in ("input_ids", "position_ids")
    )
    batch = {"input_ids": ids_BT, "labels": ids_BT.masked_fill(positions_BT <= 0, -100)}
    return batch | ({"position_ids": positions_BT} if mixes else {})


@torch.no_grad()
def keeps_documents_apart(model: PreTrainedModel) -> bool:
    """Return whether a document in a packed block gets the logits that it gets alone."""
    ids_BT = torch.arange(1, 13, device=model.device)[None] % model.config.get_text_config(decoder=True).vocab_size
    positions_BT = torch.cat([torch.arange(7), torch.arange(5)])[None].to(model.device)
    try:
        packed = model(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits[:, 7:]
    except (TypeError, ValueError, RuntimeError, IndexError):  # the class takes no positions, or not of this form
        return False
    alone = model(input_ids=ids_BT[:, 7:], use_cache=False).logits
    tolerance = max(1e-4, 8 * torch.finfo(alone.dtype).eps) * alone.abs().max().item()
    return bool(packed.shape == alone.shape and (packed - alone).abs().max().item() <= tolerance)
