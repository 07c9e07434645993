"""The finished checkpoint: the converted one's files with what training has changed in them.

Same tensor names, dtypes and division into files. A tensor that training has not changed, after rounding to the file's
dtype, is copied byte for byte. The record and the card are extended, config.json stays as it is. Written beside, read
back, renamed, as `output.py` does it for a conversion.
"""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mha2gqa.errors import OutputError, TrainingError
from mha2gqa.families.blueprint import blueprint, find_spelling
from mha2gqa.files.card import extend_card
from mha2gqa.files.companions import copy_companions
from mha2gqa.files.pieces import DTYPES, Computed, OutputTensor, Span, TensorInfo, path_of, whole
from mha2gqa.files.reader import read_checkpoint
from mha2gqa.files.record import extend_record
from mha2gqa.files.sizes import parse_size
from mha2gqa.files.staging import staged
from mha2gqa.files.streams import Sources
from mha2gqa.files.tensors import locate_tensors, read_tensor, write_tensors
from mha2gqa.files.threads import ignore_progress
from mha2gqa.files.writer import divide, write_weights
from mha2gqa.methods import POOLINGS
from mha2gqa.model.load import load_model
from mha2gqa.verbs.uptrain.account import card_section, record_entry
from mha2gqa.verbs.uptrain.held_out import loss_sums
from mha2gqa.verbs.uptrain.outcome import Losses, UptrainReport
from mha2gqa.verbs.uptrain.parameters import merge_adapter
from mha2gqa.verbs.uptrain.plan import Job
from mha2gqa.verbs.uptrain.recipe import write_recipe
from mha2gqa.verbs.uptrain.subject import Subject
from mha2gqa.verbs.uptrain.text import Text
from mha2gqa.verbs.uptrain.train import Finished

RECIPE, PLOT = "uptrain.yaml", "loss.png"


def load_trained(subject: Subject, weights: Path, *, is_adapter: bool) -> PreTrainedModel:
    """Load what the Trainer saved, on the CPU in fp32; an adapter is merged into the converted weights."""
    if is_adapter:
        return merge_adapter(load_model(subject.directory, dtype="float32", device="cpu"), weights)
    return load_model(weights, dtype="float32", device="cpu")


def changed_tensors(subject: Subject, trained: PreTrainedModel, work: Path) -> tuple[OutputTensor, ...]:
    """Return every tensor of the output; those that training has changed are written into files of their own.

    Args:
        subject: The converted checkpoint.
        trained: The trained model.
        work: Where changed tensors go until they are in the output.

    Raises:
        TrainingError: A trained number is not finite in the file's dtype.
    """
    plan = blueprint(subject.checkpoint.config)
    spelling = find_spelling(plan, {info.name for info in subject.checkpoint.tensors})
    state = spelling.write(plan, trained.state_dict())
    folder = work / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return tuple(_outputs(subject.checkpoint.tensors, state, folder))


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


def measure(trained: PreTrainedModel, text: Text, finished: Finished, job: Job) -> Losses:
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
    before = next((entry for entry in finished.history if "eval_loss" in entry), {})
    return Losses(
        before=before.get("eval_loss", math.nan),
        after=total / count,
        original=before.get("eval_original_loss"),
        tokens=int(count),
    )


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
    files = divide(tensors, parse_size(options.max_shard_size))
    with staged(job.output, force=options.force) as directory:
        checksums = write_weights(
            directory,
            files,
            method=POOLINGS["mean"],
            seed=0,
            metadata=checkpoint.metadata,
            progress=ignore_progress,
        )
        copy_companions(checkpoint.directory, checkpoint.companions, directory)
        write_recipe(directory / RECIPE, job.recipe)
        (directory / PLOT).write_bytes(plot)
        extend_record(checkpoint.directory, directory, record_entry(report), tensors, checksums)
        extend_card(checkpoint.directory, directory, job.output.resolve().name, card_section(report))
        shutil.copyfile(checkpoint.directory / "config.json", directory / "config.json")
        found = {info.name: (info.dtype, info.shape) for info in read_checkpoint(directory).tensors}
        if found != {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}:
            raise OutputError("What was written does not read back as planned", remedy="Check the disk, and try again")
        checkpoint.check_unchanged()
