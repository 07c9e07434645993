"""Where a model is run, and in which dtype: an accelerator when there is one and it fits, else the CPU in fp32."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mha2gqa.errors import DeviceError
from mha2gqa.files.reader import read_checkpoint

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes that a model can be run in, by their names on the command line."""


@dataclass(frozen=True)
class Placement:
    """Where and how a model is run."""

    device: str
    """A torch device, or `auto`: divided among all devices and memory by accelerate."""
    dtype: torch.dtype | None
    """None keeps the dtype of the checkpoint."""


def placement(directory: Path, *, dtype: str | None = None, device: str | None = None, models: int = 1) -> Placement:
    """Decide where a checkpoint is run, and in which dtype.

    Args:
        directory: The checkpoint.
        dtype: As asked for.
        device: As asked for.
        models: How many models of this size must fit at the same time.

    Raises:
        DeviceError: The device is not there.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        device = "cpu" if accelerator is None else accelerator.type
        if accelerator is not None:
            size = sum(info.size for info in read_checkpoint(directory).tensors)
            device = "auto" if models * size > torch.accelerator.get_memory_info(accelerator)[0] else device
    _check_device(device, accelerator)
    on_cpu = device == "cpu" or accelerator is None
    wanted = DTYPES[dtype] if dtype else torch.float32 if on_cpu else None
    return Placement(device, wanted)


def float64_device(wanted: str | None) -> torch.device:
    """Return where to compute with weights in float64: what is asked for, else an accelerator that can, else the CPU.

    Raises:
        DeviceError: The device is not there.
    """
    device = find_device(wanted)
    return torch.device("cpu" if device == "auto" or device.startswith("mps") else device)


def find_device(wanted: str | None) -> str:
    """Return the device that is asked for, else an accelerator when there is one, else the CPU.

    Raises:
        DeviceError: The device is not there.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = wanted or (accelerator.type if accelerator else "cpu")
    _check_device(device, accelerator)
    return device


def _check_device(device: str, accelerator: torch.device | None) -> None:
    there = ["auto", "cpu", *([accelerator.type] if accelerator else [])]
    if device.partition(":")[0] not in there:
        raise DeviceError(f"There is no device {device!r} here", expected=f"one of {', '.join(there)}")
