"""Weights that are there, but in another form than transformers': what they are, and which tool makes them ordinary.

By names alone; nothing is opened. A directory without ordinary weights is refused with the words of the first row that
fits what lies in it.
"""

import itertools
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from mha2gqa.errors import CheckpointError

_MOST = 10_000
"""Entries of a directory that are looked at."""


class _Form(NamedTuple):
    """A form of weights."""

    patterns: tuple[str, ...]
    """Of files and folders, and of files in a folder; the first one that fits is named."""
    what: str
    remedy: str


_FORMS = (
    _Form(
        ("global_step*", "*_model_states.pt", "*_optim_states.pt", "zero_to_fp32.py"),
        "a training checkpoint of DeepSpeed",
        "Make weights of it with the script beside it: python zero_to_fp32.py . OUTPUT --safe_serialization",
    ),
    _Form(
        ("*.distcp", "*/*.distcp", "*/.metadata"),
        "a sharded checkpoint of FSDP (torch.distributed.checkpoint)",
        "Merge its shards: accelerate merge-weights FOLDER OUTPUT",
    ),
    _Form(
        ("latest_checkpointed_iteration.txt", "iter_*", "mp_rank_*", "*/mp_rank_*"),
        "a training checkpoint of Megatron",
        "Export it to transformers' form with Megatron-Bridge (AutoBridge.export_ckpt), or with the converter that "
        "Megatron-LM has in tools/checkpoint",
    ),
    _Form(
        ("*.gguf",),
        "weights of llama.cpp",
        "Take the checkpoint that they were made from; or write it anew, with the loss of their quantisation: "
        "AutoModelForCausalLM.from_pretrained(DIRECTORY, gguf_file=FILE).save_pretrained(OUTPUT)",
    ),
    _Form(
        ("consolidated*.safetensors", "consolidated.*.pth", "*/consolidated*"),
        "weights in the form of their authors (Meta's or Mistral's)",
        "Take the repository's version for transformers, or convert them with transformers' "
        "models/llama/convert_llama_weights_to_hf.py or models/mistral/convert_mistral_weights_to_hf.py",
    ),
    _Form(
        ("lit_model.pth", "lit_model*"),
        "weights of LitGPT",
        "Convert them: litgpt convert_from_litgpt DIRECTORY OUTPUT",
    ),
    _Form(
        ("*.nemo", "model_weights"), "a checkpoint of NeMo", "Export it: nemo llm export --format hf, or NeMo's scripts"
    ),
    _Form(
        ("model-?????-of-?????.safetensors", "pytorch_model-?????-of-?????.bin"),
        "shards, and the index that says which tensor is in which is missing",
        "Download the file whose name ends in .index.json as well, or load and save the model again",
    ),
    _Form(
        ("model.*.safetensors", "pytorch_model.*.bin"),
        "a variant of the weights, which transformers loads by its name only",
        "Rename it to model.safetensors (or pytorch_model.bin), or name a directory without variants",
    ),
    _Form(
        ("adapter_model.safetensors", "adapter_model.bin"),
        "an adapter without its adapter_config.json",
        "Merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
    ),
    _Form(
        ("*.engine", "*/*.engine", "*.onnx", "*/*.onnx", "*.tflite", "*.mlmodel", "*.mlpackage", "*.xml"),
        "an export for another engine, of which nothing can be made",
        "Take the checkpoint that it was made from",
    ),
    _Form(
        ("tf_model*.h5", "flax_model*.msgpack", "*.ckpt.index", "rust_model.ot"),
        "weights for another framework than PyTorch",
        "Take the repository's PyTorch weights, or load these with a transformers older than 5 (from_tf, from_flax)",
    ),
    _Form(
        ("checkpoint-*/model*.safetensors", "checkpoint-*/pytorch_model*.bin", "checkpoint-*"),
        "the output of a training, with its checkpoints in folders",
        "Name the folder of one of them",
    ),
    _Form(
        ("*/model*.safetensors", "*/pytorch_model*.bin"),
        "folders with weights of their own",
        "Name the folder that holds the model",
    ),
    _Form(
        ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.npz", "*.pkl", "*.h5"),
        "weights under a name that transformers does not look for",
        "Rename the file, if it holds a plain state dict, to model.safetensors or pytorch_model.bin",
    ),
)


def no_weights(directory: Path, names: Sequence[str]) -> CheckpointError:
    """Return the refusal of a directory without ordinary weights, which names what is there instead.

    Args:
        directory: The directory.
        names: Files that it would hold one of.
    """
    there = _names(directory)
    expected = ", ".join(names[:-1]) + f" or {names[-1]}"
    for form in _FORMS:
        found = next((one for pattern in form.patterns for one in there if fnmatch(one, pattern)), None)
        if found is not None:
            return CheckpointError(
                f"There are no weights in {directory} that transformers reads, but {found}: {form.what}",
                expected=expected,
                remedy=form.remedy,
            )
    return CheckpointError(f"There are no weights in {directory}", expected=expected)


def _names(directory: Path) -> list[str]:
    """Return the names of what lies in a directory and, behind a slash, in its folders."""
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in sorted(itertools.islice(entries, _MOST), key=lambda entry: entry.name):
            names.append(entry.name)
            if entry.is_dir(follow_symlinks=False) and len(names) < _MOST:
                with os.scandir(entry.path) as inner:
                    names += sorted(f"{entry.name}/{one.name}" for one in itertools.islice(inner, 1000))
    return names
