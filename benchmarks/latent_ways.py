"""The ways to shrink a cache that `latent.py` measures, each as a model in memory.

Subject         a checkpoint, its texts, and what they tell
token_losses    what a model loses, token by token
MAKERS          way -> what makes the model of a cache; None where the way has none of that size
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from latent_baselines import joint_pca, low_rank
from torch.nn import functional
from transformers import PreTrainedModel

from mha2gqa.model.feed import inputs
from mha2gqa.model.load import context_length, load_model, load_tokenizer
from mha2gqa.model.original import Original
from mha2gqa.progress import QUIET
from mha2gqa.reference.corpus import calibration_files, held_out_files, read_documents
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.latent.choice import Known, Trial, choose
from mha2gqa.refine.latent.files import LatentFiles
from mha2gqa.refine.latent.refiner import RATE, LatentRefiner
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.refine import Refinement
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.targets.latent.config import head_widths
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.rope import named_key
from mha2gqa.targets.latent.widths import like_groups, rotary_widths
from mha2gqa.texts.blocks import mean_loss, pack
from mha2gqa.verbs.convert.layerwise import batches
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.run import convert

_EVALUATED = 0.4
"""Share of a text that is evaluated on, its last part."""
_ASIDE = 8
"""One block in so many of the calibration text, the last, chooses R."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and its texts."""

    directory: Path
    options: argparse.Namespace
    trials: dict[int, Trial] = field(default_factory=dict)
    """Cache -> the rotary key that was chosen for it."""

    @property
    def name(self) -> str:
        """What results call it."""
        return self.directory.name if self.options.checkpoint else "reference"

    @cached_property
    def documents(self) -> tuple[list[str], list[str]]:
        """Documents to calibrate on, and to evaluate on."""
        if not self.options.data:
            return list(read_documents(calibration_files())), list(read_documents(held_out_files()))
        texts = [Path(name).read_text(encoding="utf-8") for name in self.options.data]
        cuts = [int(len(text) * (1 - _EVALUATED)) for text in texts]
        parts = list(zip(texts, cuts, strict=True))
        return [text[:cut] for text, cut in parts], [text[cut:] for text, cut in parts]

    @cached_property
    def original(self) -> PreTrainedModel:
        """The original."""
        return load_model(self.directory, dtype="float32", device="cpu")

    @cached_property
    def source(self) -> LatentSource:
        """What is known of it."""
        return LatentSource.of(Original.at(self.directory).architecture)

    @cached_property
    def evaluation(self) -> list[torch.Tensor]:
        """Batches to evaluate on."""
        return list(batches(self._blocks(self.documents[1], self.options.eval_tokens)))

    @cached_property
    def original_losses(self) -> torch.Tensor:
        """What the original loses there, `[N, T - 1]`."""
        return token_losses(self.original, self.evaluation)

    @cached_property
    def calibration(self) -> list[torch.Tensor]:
        """Batches to learn from, all of one shape."""
        return list(batches(self._calibration[: -self._kept], whole=True))

    @cached_property
    def aside(self) -> list[torch.Tensor]:
        """Batches to choose R on."""
        return list(batches(self._calibration[-self._kept :]))

    @cached_property
    def known(self) -> Known:
        """What the calibration text tells, tokens counted by the attention that they receive."""
        statistics = gather_statistics(self.original, self.source.layers, self.calibration, lambda *_: None)
        return Known(self.original, self.source, statistics)

    @property
    def group_cache(self) -> int:
        """Numbers that one KV head caches for a token."""
        return like_groups(1, *head_widths(self.source.layers[0]))

    @property
    def whole_cache(self) -> int:
        """Numbers a token and layer that the original caches."""
        return self.group_cache * self.source.layers[0].kv_heads

    @cached_property
    def _calibration(self) -> torch.Tensor:
        return self._blocks(self.documents[0], self.options.tokens)

    @property
    def _kept(self) -> int:
        return max(1, len(self._calibration) // _ASIDE)

    def _blocks(self, documents: list[str], tokens: int) -> torch.Tensor:
        context = context_length(self.original.config, self.options.context)
        return pack(documents, load_tokenizer(self.directory), context=context, tokens=tokens)

    def best(self, cache: int) -> Trial:
        """Return the division of a cache that loses the least on text kept aside."""
        if cache not in self.trials:
            widths, is_free = self.options.widths or rotary_widths(cache), self.options.rope == "free"
            divisions = [(cache - width, width) for width in widths]
            self.trials[cache] = choose(self.known, divisions, self._score, free=is_free)
        return self.trials[cache]

    def take(self, cache: int, *, width: int, name: str, aside: float) -> None:
        """Take a rotary key that was chosen for a cache before."""
        source = self.source
        key = named_key(name, source.rotary, width // 2, theta=source.theta, context=source.context)
        self.trials[cache] = Trial(key, cache - width, aside)

    def _score(self, key: RotaryKey, latent: int) -> Trial:
        model = fitted(self, LatentHost(self.source, key, latent))
        trial = Trial(key, latent, mean_loss(model, self.aside))
        print(f"    R {key.width:4d}, {key.kind}: {trial.loss:.4f} on text kept aside", flush=True)
        return trial


@torch.inference_mode()
def token_losses(model: PreTrainedModel, batches_BT: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what a model loses at each token but the first of each block, nats, fp64 `[N, T - 1]`."""
    found = []
    for ids_BT in batches_BT:
        logits_BVT = model(**inputs(model, ids_BT)).logits[:, :-1].mT
        found.append(functional.cross_entropy(logits_BVT, ids_BT[:, 1:], reduction="none").double())
    return torch.cat(found)


def fitted(subject: Subject, host: LatentHost) -> PreTrainedModel:
    """Return a host, every layer fitted by the statistics."""
    with tempfile.TemporaryDirectory() as folder:
        return subject.known.student(LatentFiles(Path(folder), host), lambda *_: None)


def grouped(subject: Subject, cache: int, *, method: str, refine: Refinement | None) -> PreTrainedModel | None:
    """Return the GQA model of as many numbers; None where no number of KV heads has them."""
    groups, rest = divmod(cache, subject.group_cache)
    if rest or not groups or subject.source.layers[0].kv_heads % groups:
        return None
    with tempfile.TemporaryDirectory() as folder:
        text, output = Path(folder) / "calibration.jsonl", Path(folder) / "converted"
        text.write_text("".join(json.dumps({"text": one}) + "\n" for one in subject.documents[0]), encoding="utf-8")
        asked: dict[str, Any] = {"groups": groups, "method": method, "refine": refine, "device": "cpu"}
        asked |= {name: getattr(subject.options, name) for name in ("tokens", "context", "steps")}
        asked |= {"data": (str(text),)} if method == "aligned" else {}
        convert(ConvertOptions(model=str(subject.directory), output=output, **asked))
        return load_model(output, dtype="float32", device="cpu")


def latent(subject: Subject, cache: int, *, refine: Refinement | None) -> PreTrainedModel:
    """Return the latent model of as many numbers."""
    best = subject.best(cache)
    host = LatentHost(subject.source, best.key, best.latent)
    if refine is None:
        return fitted(subject, host)
    student = build_latent_student(subject.original, host)
    options = Descent(steps=subject.options.steps, rate=RATE)
    with tempfile.TemporaryDirectory() as folder:
        memory = Activations(8 << 30, Path(folder))
        files = LatentFiles(Path(folder) / "layers", host)
        LatentRefiner(subject.original, student, files, subject.calibration, refine, options, memory).run(QUIET)
    return student


def whitened(subject: Subject, cache: int) -> PreTrainedModel:
    """Return the original with keys and values of low rank, half the cache each."""
    statistics = gather_statistics(subject.original, subject.source.layers, subject.calibration, lambda *_: None)
    return low_rank(subject.original, subject.source.layers, statistics, cache // 2)


def pca(subject: Subject, cache: int) -> PreTrainedModel | None:
    """Return the latent model of one shared row a plane and a joint PCA of the rest; None where it has no room."""
    statistics = gather_statistics(subject.original, subject.source.layers, subject.calibration, lambda *_: None)
    return joint_pca(subject.original, subject.source, statistics, cache)


MAKERS: Mapping[str, Callable[[Subject, int], PreTrainedModel | None]] = {
    "mean": partial(grouped, method="mean", refine=None),
    "aligned": partial(grouped, method="aligned", refine=None),
    "refit": partial(grouped, method="aligned", refine="refit"),
    "distil": partial(grouped, method="aligned", refine="distil"),
    "svd": whitened,
    "pca": pca,
    "latent": partial(latent, refine=None),
    "latent-refit": partial(latent, refine="refit"),
    "latent-distil": partial(latent, refine="distil"),
}
