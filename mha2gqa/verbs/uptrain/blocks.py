"""Training text as documents, and as blocks of tokens.

Documents are shuffled through a buffer, and a part of them kept aside for measuring, by a checksum of their text, so
that copies are kept from training as well, in any order and on any machine. Text of too few documents is cut into
pieces at line ends first.

Of conversations all tokens may be learned from, or the answers alone; a block without any is left out.

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

from mha2gqa.texts.blocks import check_vocabulary, opening_token
from mha2gqa.texts.chats import Document, Encoded, Record, encode
from mha2gqa.texts.documents import pieces
from mha2gqa.verbs.uptrain.options import Learned

TrainingRow: TypeAlias = Mapping[str, Sequence[int]]
"""Lists of numbers by their names: a block, or what else is a row on disk."""
Shuffled = TypeVar("Shuffled", bound=Sized)

COLUMNS = ("input_ids", "position_ids", "learned")
"""Of a block: its tokens, their places in their documents, and 1 for those that are learned from."""
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


def shuffled(documents: Iterable[Shuffled], seed: int, characters: Callable[[Any], int] = len) -> Iterator[Shuffled]:
    """Yield documents in an order that depends on the seed alone; a bounded number of them is in memory.

    Args:
        documents: Texts, or what else `characters` gives the size of.
        seed: Of the order.
        characters: Size of one.
    """
    generator = random.Random(seed)  # noqa: S311 (no secret)
    buffer: list[Shuffled] = []
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


def cut_if_few(documents: Iterable[Document]) -> Iterator[Document]:
    """Yield documents; where there are few, pieces of texts, cut at line ends (or anywhere, in one huge line)."""
    stream = iter(documents)
    first = list(itertools.islice(stream, _FEW))
    if len(first) == _FEW:
        yield from itertools.chain(first, stream)
        return
    size = max(1, sum(map(len, first)) // _FEW)
    for document in first:
        yield from pieces(document, size) if isinstance(document, str) else [document]


def key_of(document: Document) -> int:
    """Return what a document and its copies have in common."""
    text = document.line if isinstance(document, Record) else document
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


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
    learn_from: Learned | None = None
    """Which tokens of conversations are learned from."""
    _ids: list[int] = field(default_factory=list)
    _positions: list[int] = field(default_factory=list)
    _learned: list[bool] = field(default_factory=list)

    def add(self, document: Sequence[int] | Encoded) -> Iterator[TrainingRow]:
        """Take in a document; yield the blocks that are full with it."""
        encoded = document if isinstance(document, Encoded) else Encoded(document)
        opens = self.bos is not None and not encoded.is_whole and list(encoded.ids[:1]) != [self.bos]
        rest = [self.bos, *encoded.ids] if opens and self.bos is not None else list(encoded.ids)
        learned = [*([True] * opens), *self._counting(encoded)]
        at = 0
        while at < len(rest):
            if at and self.reopens and self.bos is not None:
                at -= 1
                rest[at] = self.bos
            piece = rest[at : at + self.context - len(self._ids)]
            self._learned += learned[at : at + len(piece)]
            at += len(piece)
            self._ids += piece
            self._positions += range(len(piece))
            if len(self._ids) == self.context:
                yield from self._take()
        if not self.mixes and len(self._ids) > 1:
            padding = self.context - len(self._ids)
            self._ids += [0] * padding
            self._positions += [_PADDING] * padding
            self._learned += [False] * padding
            yield from self._take()

    def _counting(self, encoded: Encoded) -> Sequence[bool]:
        """Return which tokens of a document are learned from."""
        is_divided = self.learn_from == "answers" or (self.learn_from is None and encoded.is_completion)
        return encoded.answers if is_divided and encoded.answers else [True] * len(encoded.ids)

    def _take(self) -> Iterator[TrainingRow]:
        row = {"input_ids": self._ids, "position_ids": self._positions, "learned": list(map(int, self._learned))}
        if any(one and position > 0 for one, position in zip(self._learned, self._positions, strict=True)):
            yield row
        self._ids, self._positions, self._learned = [], [], []


def packer_for(
    tokenizer: PreTrainedTokenizerBase, context: int, *, mixes: bool, learn_from: Learned | None = None
) -> Packer:
    """Return a packer that treats BOS as `texts.blocks.pack` does."""
    opens = opening_token(tokenizer) is not None
    return Packer(context=context, bos=tokenizer.bos_token_id, reopens=opens, mixes=mixes, learn_from=learn_from)


def tokenise(document: Document, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Encoded:
    """Return the tokens of a document, without special ones but those of a chat template.

    Raises:
        TextError: The tokenizer knows more tokens than the model, or the template is missing.
    """
    if isinstance(document, Record):
        encoded = encode(document, tokenizer)
    else:
        ids: list[int] = []
        for start in range(0, len(document), _AT_ONCE):
            ids += tokenizer(document[start : start + _AT_ONCE], add_special_tokens=False, verbose=False)["input_ids"]
        encoded = Encoded(ids)
    check_vocabulary(max(encoded.ids, default=0), vocabulary)
    return encoded


class BlockFile:
    """An Arrow file of rows that appears at once and whole."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
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
        `input_ids`, `labels` (-100 where nothing is predicted or learned) and the positions, each int64 `[B, T]`.
    """
    ids_BT, positions_BT, learned_BT = (
        torch.stack([torch.as_tensor(row[name], dtype=torch.int64) for row in rows]) for name in COLUMNS
    )
    left_out_BT = (positions_BT <= 0) | (learned_BT == 0)
    batch = {"input_ids": ids_BT, "labels": ids_BT.masked_fill(left_out_BT, -100)}
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
