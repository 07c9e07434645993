"""Models loaded to be run: by transformers' own class, strictly, where they fit.

    load_model(directory)           the class that wrote the checkpoint, in evaluation mode
    load_original(original)         the same of an original, in the class that it has now
    load_tokenizer(directory)       its tokenizer
    context_length(config, wanted)  tokens of a block to run it on

On an accelerator weights keep their dtype; on a CPU they are used in fp32. Nothing here knows what the
model is run for.
"""

import contextlib
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import CheckpointError, TextError
from mha2gqa.files.quantised import quantisation
from mha2gqa.files.streams import Sources
from mha2gqa.files.tensors import read_tensor
from mha2gqa.model.devices import Placement, placement
from mha2gqa.model.original import Original

DEFAULT_CONTEXT = 2048
"""Tokens of a block where the model allows as many."""

_PLAIN_GENERATION = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "eos_token_id": None,
}
"""How `generate` says what its model says, one token after the other; all else that it can be told has its default."""
_KEPT_OF_GENERATION = ("bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache", "transformers_version")


def load_model(directory: Path, *, dtype: str | None = None, device: str | None = None) -> PreTrainedModel:
    """Load a checkpoint with its own class, in evaluation mode.

    What the checkpoint's generation settings ask (sampling, penalties, end of text) is set aside:
    `generate` is greedy and writes as many tokens as it is told.

    Args:
        directory: The checkpoint.
        dtype: A name in `DTYPES`; None is the checkpoint's own on an accelerator, and fp32 on a CPU.
        device: A torch device, or `auto`; None takes an accelerator when there is one, and divides a model
            that is larger than its free memory.

    Raises:
        CheckpointError: A key is missing, unexpected or has another shape than the class expects.
    """
    return _strict(Original.at(directory), dtype, device)


def load_original(original: Original, *, dtype: str | None = None, device: str | None = None) -> PreTrainedModel:
    """Load an original as `load_model` does, in the class that it has.

    Files of another class, or with the names of a wrapper, do not fit that one: the model is then made of the tensors'
    bytes, which are in memory twice while they are taken over.

    Raises:
        CheckpointError: A key is missing, unexpected or has another shape than the class expects.
    """
    return _strict(original, dtype, device)


def _strict(original: Original, dtype: str | None, device: str | None) -> PreTrainedModel:
    model, problems = _load(original, placement(original.directory, dtype=dtype, device=device))
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{original.directory} does not load strictly: {'; '.join(problems[:3])}{more}",
            expected=f"exactly the tensors of {type(model).__name__}",
            remedy="Check that config.json and the weights belong together",
        )
    return model


def load_unchecked(directory: Path, place: Placement) -> tuple[PreTrainedModel, list[str]]:
    """Load as `load_model` does, and return what is wrong with each key (`missing <name>`) instead of refusing it."""
    return _load(Original.at(directory), place)


def drawn(model: PreTrainedModel, problems: Iterable[str]) -> tuple[str, ...]:
    """Return the parameters that no file gave, so that transformers has drawn them at random.

    A pooler is left out: nothing that is compared or trained reads it.
    """
    parts = (problem.partition(" ") for problem in problems)
    names = (name for kind, _, name in parts if kind in ("missing", "mismatched"))
    return tuple(name for name in names if "pooler" not in name.split("."))


def are_of_head(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Return whether parameters all lie above the body of a model, whose hidden states do without them."""
    body = f"{model.base_model_prefix}."
    return model.base_model is not model and not any(name.startswith(body) for name in names)


def _load(original: Original, place: Placement) -> tuple[PreTrainedModel, list[str]]:
    """Load with the config as the blueprint has it: without kernels that are not here, or that would be fetched."""
    outline = original.architecture.outline
    given: dict[str, Any] = {"config": copy.deepcopy(outline.config)}
    if not original.is_as_filed:
        given["state_dict"] = _state(original)
    model_class: Any = type(outline)
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
            original.directory if original.is_as_filed else None,
            **given,
            dtype=place.dtype or "auto",
            device_map=place.device if place.device != "cpu" else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (ImportError, ValueError, RuntimeError) as error:
        if (kind := quantisation(original.config_json)) is None:
            raise
        raise CheckpointError(
            f"transformers cannot load the quantised weights ({kind}) here: {' '.join(str(error).split())[:300]}",
            expected="what that quantisation needs, or a command that runs no model",
            remedy="Convert it without text, and verify it with --level file",
        ) from error
    model, info = loaded
    set_plain_generation(model)
    problems = [
        f"{kind.removesuffix('_keys')} {key[0] if isinstance(key, tuple) else key}"
        for kind, keys in info.items()
        for key in sorted(keys)
    ]
    return model.eval(), problems


def _state(original: Original) -> dict[str, torch.Tensor]:
    """Return all tensors of an original, by their names in the module tree."""
    with contextlib.closing(Sources()) as sources:
        return {info.name: read_tensor(sources, info) for info in original.tensors}


def set_plain_generation(model: PreTrainedModel) -> None:
    """Set aside what a checkpoint asks of generation: it becomes greedy and as long as it is told."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    defaults = {name: value for name, value in vars(GenerationConfig()).items() if not name.startswith("_")}
    for name, value in (defaults | _PLAIN_GENERATION).items():
        if name not in _KEPT_OF_GENERATION:
            setattr(settings, name, value)
    if settings.pad_token_id is None:
        settings.pad_token_id = 0


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint.

    Raises:
        TextError: There is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise exceptions of every kind, plain Exception too
        reason = " ".join(str(error).split())[:200]
        raise TextError(
            f"The tokenizer of {directory} cannot be loaded: {reason}",
            expected="tokenizer.json or the like beside the weights",
            remedy="Copy the tokenizer's files there",
        ) from error
    return tokenizer


def context_length(config: PreTrainedConfig, wanted: int | None, option: str = "--context") -> int:
    """Return how many tokens a block has: what is wanted, else as many as the model reads, up to 2048.

    Raises:
        TextError: More is wanted than the model reads, or fewer than two.
    """
    text = config.get_text_config(decoder=True)
    most = getattr(text, "max_position_embeddings", None)
    most = most if isinstance(most, int) and most > 1 else None
    if wanted is None:
        return min(DEFAULT_CONTEXT, most or DEFAULT_CONTEXT)
    if wanted < 2 or (most is not None and wanted > most):
        expected = f"2 to {most} tokens" if most else "at least 2 tokens"
        raise TextError(f"{option} {wanted} does not fit the model", expected=expected)
    return wanted
