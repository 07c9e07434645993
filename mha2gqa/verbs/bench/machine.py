"""What a measurement ran on: processor, memory, versions. Without it no time means anything."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from mha2gqa.units import format_size

_PACKAGES = ("mha2gqa", "torch", "transformers")


def machine() -> dict[str, str]:
    """Return processor, cores, memory and system of this machine."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": format_size(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that matter, and of `more` packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in (*_PACKAGES, *more)}


def device_name(device: str) -> str:
    """Return the name of the processor that `device` means."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return _processor() if device == "cpu" else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
