"""A conversion to latent attention, from its options to one finished file per layer.

Text is divided: seven blocks in eight tell what a layer's inputs are like, the eighth says what a model loses. On it
are chosen the width of the rotary key and its speeds, where they were left open, and held against the result: the
original, the speeds that were not asked for, and fewer KV heads in no more cache. What an interrupted run has fitted
and measured stays beside the output.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.files.staging import check_output, workspace
from mha2gqa.model.layers import LayerFiles
from mha2gqa.progress import QUIET, Progress
from mha2gqa.refine.activations import Activations
from mha2gqa.refine.descend import Descent
from mha2gqa.refine.latent.choice import Known, Trial, choose
from mha2gqa.refine.latent.files import LatentFiles, RangeError
from mha2gqa.refine.latent.joint import train_latent_jointly
from mha2gqa.refine.latent.refiner import RATE, LatentRefiner
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.refine.refine import keep_aside
from mha2gqa.refine.statistics import gather_statistics
from mha2gqa.targets.kv_heads import KvHeads, choices
from mha2gqa.targets.latent.aim import host_of, planned_key
from mha2gqa.targets.latent.config import head_widths
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.sources import elsewhere
from mha2gqa.targets.latent.target import Latent
from mha2gqa.targets.latent.widths import CHOSEN, KERNELS, divisions, like_groups
from mha2gqa.targets.plan import Plan, make_plan
from mha2gqa.texts.blocks import mean_loss
from mha2gqa.units import parse_size
from mha2gqa.verbs.convert.conversion import Converted, fingerprint
from mha2gqa.verbs.convert.layerwise import Layerwise, batches
from mha2gqa.verbs.convert.options import ConvertOptions
from mha2gqa.verbs.convert.reading import Text, check_text

_KEPT_ASIDE = 8
"""One block in so many measures."""


@contextlib.contextmanager
def converted_latents(
    options: ConvertOptions, plan: Plan, target: Latent, output: Path, progress: Progress
) -> Iterator[Converted]:
    """Make the layers of a conversion; they lie beside the output as long as the block runs.

    Args:
        options: What was asked for.
        plan: The conversion, without layers, and with what text has yet to choose as it may be.
        target: The same in short.
        output: The directory that will be created at last.
        progress: Told of each finished layer, and of everything else that takes long.

    Raises:
        Mha2GqaError: Text or a tokenizer is missing, or the output cannot be written.
    """
    original = plan.original
    check_text(options, original, "A latent")
    if options.dry_run:
        left = "" if target.is_settled else "What text has yet to choose of the rotary key is shown as it may be."
        yield Converted(target=_of_plan(plan, target), notes=[left] if left else [])
        return
    scratch = sum(tensor.size for tensor in plan.tensors if tensor.is_computed)
    check_output(output, original.directory, plan.size + 3 * scratch, force=options.force)
    text = Text.find(options, original, progress)
    with workspace(output, fingerprint(options, original), keep=True) as directory:
        yield _Latents(options, plan, target, text, directory, progress).converted()


def _of_plan(plan: Plan, target: Latent) -> Latent:
    """Return a target that makes the plan again."""
    widths = {fact.name: fact.after for fact in plan.change.facts}
    source = LatentSource.of(plan.original.architecture)
    return target.settled(
        widths["latent"], widths["rope_width"], planned_key(source, target, widths["rope_width"]).name
    )


@dataclass(frozen=True)
class _Latents:
    """One conversion under way."""

    options: ConvertOptions
    plan: Plan
    target: Latent
    text: Text
    directory: Path
    progress: Progress
    tried: list[tuple[Trial, LatentFiles]] = field(default_factory=list)

    def converted(self) -> Converted:
        """Choose, fit, refine and measure."""
        chosen = self._chosen()
        files, loss, divergence = self._files(chosen.key, chosen.latent), chosen.loss, None
        if self.options.refine is not None:
            files, student, divergence = self._refined(files.host)
            loss = mean_loss(student, self._aside)
        rows = [self._row("tried", _named(trial), trial.loss) for trial, _ in self.tried if trial.loss < math.inf]
        rows.append(self._row("result", _named(chosen), loss, self.options.refine))
        grouped = self._grouped(chosen.latent + chosen.key.width)
        return Converted(
            target=self.target.settled(chosen.latent, chosen.key.width, chosen.key.name),
            layers=files.results(),
            reports=[files.report(number) for number in range(len(self._source.layers))],
            text=self.text.blocks.description,
            trials=[*rows, *grouped],
            divergence=divergence,
            notes=[*_notes(files.host, loss, grouped)],
        )

    def _chosen(self) -> Trial:
        """Return the division and the key that lose the least; the layers of all others go."""
        possible, speeds = divisions(self._source.whole, self.target), self.target.frequencies
        if speeds in CHOSEN:
            best = choose(self._known, possible, self._score, free=speeds == "free")
            other = self._known.key(best.key.width, best.latent, free=speeds != "free")
            if other.width == best.key.width:
                self._score(other, best.latent)
        else:
            named = [(planned_key(self._source, self.target, width), latent) for latent, width in possible]
            best = min((self._score(*one) for one in named), key=lambda trial: trial.loss)
        if best.loss == math.inf:
            raise RangeError(
                f"No latent form of this model fits into {self._files(best.key, best.latent).host.dtype}",
                remedy="Convert an fp32 or bf16 copy of the checkpoint",
            )
        for trial, files in self.tried:
            if trial is not best:
                files.drop_layers()
        return best

    def _score(self, key: RotaryKey, latent: int) -> Trial:
        files = self._files(key, latent)
        if math.isnan(files.read_loss()):
            advance = self.progress.part(f"latent {latent}, rotary key {key.width} ({key.kind})")
            try:
                loss = mean_loss(self._known.student(files, advance), self._aside)
            except RangeError:
                if self.target.is_settled:
                    raise
                loss = math.inf  # others may do
            files.write_loss(loss)
        trial = Trial(key, latent, files.read_loss())
        self.tried.append((trial, files))
        return trial

    def _refined(self, host: LatentHost) -> tuple[LatentFiles, PreTrainedModel, tuple[float, float] | None]:
        """Return the layers fitted and refined one after the other, and for `joint` all together."""
        options, model, refinement = self.options, self.text.model, self.options.refine
        files = LatentFiles(self.directory / "refined", host)
        whole, student = batches(self._learned_NT, whole=True), build_latent_student(model, host)
        memory = Activations(parse_size(options.activation_memory, "--activation-memory") or 0, self.directory)
        descent = Descent(steps=options.steps, rate=RATE, seed=options.seed)
        LatentRefiner(model, student, files, whole, refinement, descent, memory).run(self.progress)
        if refinement != "joint":
            return files, student, None
        aside, training = keep_aside(whole)
        modules = [layer.module for layer in host.source.layers]
        advance = self.progress.part("joint")
        divergence = train_latent_jointly(model, student, modules, training, aside, descent, advance)
        together = LatentFiles(self.directory / "joint", host)
        for number, module in enumerate(modules):
            attention = student.get_submodule(module)
            tensors = {name: attention.get_parameter(name).detach() for name in files.read(number)}
            together.write(number, tensors, files.report(number))
        return together, student, divergence

    def _grouped(self, cache: int) -> list[dict[str, Any]]:
        """Return what `aligned` loses with as many KV heads as fit into a cache, learned from the same text."""
        original, source = self.plan.original, self._source
        possible = choices(original.architecture)
        heads = [count for count in possible if like_groups(count, *head_widths(source.layers[0])) <= cache]
        if not heads or len(possible) == 1:
            return []
        target = KvHeads(max(heads))
        plan = make_plan(target.host(original), target)
        loss = self._original_loss
        if plan.changed:
            (work := self.directory / "aligned").mkdir(exist_ok=True)
            merge = LayerMerge(method="aligned", grouping="contiguous", seed=self.options.seed)
            files = LayerFiles(plan.original, work)
            layerwise = Layerwise(files=files, plan=plan, merge=merge, progress=QUIET, device=self.text.model.device)
            layerwise.from_statistics(self.text.model, self._learned_NT)
            loss = mean_loss(layerwise.student(self.text.model), self._aside)
        return [self._row("beside", f"{max(heads)} KV heads, aligned", loss) | {"groups": max(heads)}]

    def _row(self, label: str, way: str, loss: float, refine: str | None = None) -> dict[str, Any]:
        increase = math.expm1(loss - self._original_loss)
        return {"label": label, "way": way, "refine": refine, "loss": loss, "increase": increase}

    def _files(self, key: RotaryKey, latent: int) -> LatentFiles:
        name = hashlib.sha256(f"{latent} {key.width} {key.name}".encode()).hexdigest()[:16]
        return LatentFiles(self.directory / name, host_of(self.plan.original, self._source, latent, key))

    @cached_property
    def _source(self) -> LatentSource:
        return LatentSource.of(self.plan.original.architecture)

    @cached_property
    def _aside(self) -> Sequence[torch.Tensor]:
        return batches(self.text.blocks.tokens_NT[::_KEPT_ASIDE])

    @cached_property
    def _learned_NT(self) -> torch.Tensor:
        blocks_NT = self.text.blocks.tokens_NT
        return blocks_NT[torch.arange(len(blocks_NT)) % _KEPT_ASIDE != 0]

    @cached_property
    def _original_loss(self) -> float:
        return mean_loss(self.text.model, self._aside)

    @cached_property
    def _known(self) -> Known:
        advance = self.progress.part("statistics")
        statistics = gather_statistics(self.text.model, self._source.layers, batches(self._learned_NT), advance)
        return Known(self.text.model, self._source, statistics)


def _named(trial: Trial) -> str:
    return f"latent {trial.latent}, rotary key {trial.key.width} ({trial.key.kind})"


def _notes(host: LatentHost, loss: float, grouped: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what is to be known of the result: what would have been better, and what runs it."""
    for row in grouped:
        if row["loss"] < loss:
            yield (
                f"{row['groups']} KV heads lose less in no more cache: "
                f"take --groups {row['groups']} --method aligned with the same text instead."
            )
    if reasons := elsewhere(host.source.model.blueprint, has_bias=host.shape.has_bias, has_free_key=host.key.is_free):
        yield f"vLLM and llama.cpp do not run this checkpoint: {'; '.join(reasons)}."
    elif (cache := host.latent + host.key.width) not in KERNELS:
        yield f"MLA kernels of vLLM take {' or '.join(map(str, KERNELS))} numbers a token and layer, not {cache}."
