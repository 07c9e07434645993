"""The finished checkpoint: the converted one's files with what training has changed in them.

Same tensor names, dtypes and division into files. A tensor that training has not changed, after rounding to the file's
dtype, is copied byte for byte. The record and the card are extended, config.json stays as it is.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import TrainingError
from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.finish import Contents, finish
from mha2gqa.files.pieces import Computed, OutputTensor, Span, TensorInfo, path_of, whole
from mha2gqa.files.pool import Pool
from mha2gqa.files.streams import Sources
from mha2gqa.files.tensors import locate_tensors, read_tensor, write_tensors
from mha2gqa.files.writer import divide
from mha2gqa.methods import streamed
from mha2gqa.model.load import load_model
from mha2gqa.progress import QUIET
from mha2gqa.record.card import extended_card
from mha2gqa.record.record import extended
from mha2gqa.refine.latent.modules import fold_rows
from mha2gqa.units import parse_size
from mha2gqa.verbs.uptrain.account import card_section, record_entry
from mha2gqa.verbs.uptrain.held_out import loss_sums
from mha2gqa.verbs.uptrain.outcome import Losses, UptrainReport
from mha2gqa.verbs.uptrain.parameters import merge_adapter
from mha2gqa.verbs.uptrain.plan import Job
from mha2gqa.verbs.uptrain.recipe import recipe_text
from mha2gqa.verbs.uptrain.subject import Subject
from mha2gqa.verbs.uptrain.text import TrainingText
from mha2gqa.verbs.uptrain.train import Finished

RECIPE, PLOT = "uptrain.yaml", "loss.png"


def load_trained(subject: Subject, weights: Path, *, is_adapter: bool) -> PreTrainedModel:
    """Load what the Trainer saved, on the CPU in fp32; an adapter is merged into the converted weights."""
    model = load_model(subject.directory if is_adapter else weights, dtype="float32", device="cpu")
    if is_adapter:
        fold_rows(model)
        model = merge_adapter(model, weights)
    fold_rows(model, back=True)
    return model


def changed_tensors(subject: Subject, trained: PreTrainedModel, work: Path) -> tuple[OutputTensor, ...]:
    """Return every tensor of the output; those that training has changed are written into files of their own.

    Args:
        subject: The converted checkpoint.
        trained: The trained model.
        work: Where changed tensors go until they are in the output.

    Raises:
        TrainingError: A trained number is not finite in the file's dtype.
    """
    converted = subject.converted
    state = converted.spelling.write(converted.architecture.blueprint, trained.state_dict())
    folder = work / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return tuple(_outputs(converted.tensors, state, folder))


def _outputs(infos: tuple[TensorInfo, ...], state: Mapping[str, torch.Tensor], folder: Path) -> Iterator[OutputTensor]:
    sources = Sources()
    try:
        for number, info in enumerate(infos):
            if info.name not in state or info.dtype not in DTYPES:
                yield whole(info)
                continue
            tensor = state[info.name].to(DTYPES[info.dtype])
            if torch.equal(tensor, read_tensor(sources, info)):
                yield whole(info)
            else:
                yield _computed(info, tensor, folder / f"{number:05d}.safetensors")
    finally:
        sources.close()


def _computed(info: TensorInfo, tensor: torch.Tensor, path: Path) -> OutputTensor:
    if not torch.isfinite(tensor).all():
        raise TrainingError(
            f"The trained tensor {info.name!r} is not finite as {info.dtype}",
            remedy="Train with a lower learning rate",
        )
    write_tensors(path, {info.name: tensor}, {})
    (written,), _ = locate_tensors(path)
    span = Span(written.file, written.offset, written.size)
    return OutputTensor(info.name, info.dtype, info.shape, (Computed(span, origin=path_of(info.file)),))


def measure(trained: PreTrainedModel, text: TrainingText, finished: Finished, job: Job) -> Losses:
    """Measure the trained model with its weights rounded to the file's dtypes, which it keeps.

    The losses of the converted checkpoint and the original are those that the run has measured.
    """
    _round(trained, {info.name: info.dtype for info in job.subject.checkpoint.tensors})
    device = job.arguments.device
    half = torch.bfloat16 if job.arguments.bf16 else torch.float16
    with torch.autocast(device.type, half, enabled=job.arguments.bf16 or job.arguments.fp16):
        placed: Any = trained
        placed.to(device)
        batch = job.arguments.per_device_eval_batch_size
        total, count = loss_sums(trained, text.held_out, job.task, batch, device).tolist()
    return replace(unchanged(text, finished, job), after=total / count, tokens=int(count))


def unchanged(text: TrainingText, finished: Finished, job: Job) -> Losses:
    """Return the losses where the converted checkpoint's weights are kept."""
    begun = next((entry for entry in finished.history if "eval_loss" in entry), {})
    before, task = begun.get("eval_loss", math.nan), job.task
    tokens = sum(int((task.targets(task.collate([row])["labels"]) != -100).sum()) for row in text.held_out)
    return Losses(before=before, after=before, original=begun.get("eval_original_loss"), tokens=tokens)


@torch.no_grad()
def _round(model: PreTrainedModel, dtypes: Mapping[str, str]) -> None:
    usual = Counter(dtype for dtype in dtypes.values() if dtype in DTYPES).most_common(1)[0][0]
    for name, parameter in model.named_parameters():
        dtype = DTYPES.get(dtypes.get(name, usual), parameter.dtype)
        parameter.copy_(parameter.to(dtype))


def write_result(job: Job, tensors: tuple[OutputTensor, ...], report: UptrainReport, plot: bytes) -> None:
    """Write the checkpoint, which appears at once and whole.

    Args:
        job: The run.
        tensors: Of the output.
        report: For the record and the card.
        plot: The losses, as a PNG.

    Raises:
        OutputError: The output cannot be written there, or does not read back.
    """
    checkpoint, options = job.subject.checkpoint, job.options
    contents = Contents(
        files=divide(tensors, parse_size(options.max_shard_size)),
        pool=Pool(streamed(None), 0),  # nothing is merged
        source=checkpoint,
        config=None,
        record=lambda checksums: extended(checkpoint.directory, record_entry(report), tensors, checksums),
        card=extended_card(checkpoint.directory, job.output.resolve().name, card_section(report)),
        more={RECIPE: recipe_text(job.recipe).encode(), PLOT: plot},
    )
    finish(job.output, contents, force=options.force, progress=QUIET)
