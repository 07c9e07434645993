"""Models loaded to be run: by transformers' own class, strictly, where they fit.

    load_model(directory)           the class that wrote the checkpoint, in evaluation mode
    load_original(original)         the same of an original, in the class that it has now
    load_tokenizer(directory)       its tokenizer
    context_length(config, wanted)  tokens of a block to run it on

On an accelerator weights keep their dtype; on a CPU they are used in fp32. Nothing here knows what the
model is run for.
"""

import copy
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mha2gqa.errors import CheckpointError, TextError
from mha2gqa.files.reader import read_json
from mha2gqa.files.streams import Sources
from mha2gqa.files.tensors import read_tensor
from mha2gqa.model.architecture import Architecture
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
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
}
"""What a checkpoint asks of generation that would hide what its model says."""


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
    model, problems = load_unchecked(directory, placement(directory, dtype=dtype, device=device))
    _require_strict(directory, model, problems)
    return model


def load_original(original: Original, *, dtype: str | None = None, device: str | None = None) -> PreTrainedModel:
    """Load an original as `load_model` does, in the class that it has.

    Files of another class do not fit that one: the model is then made of the tensors' bytes, which are in memory twice
    while they are taken over.

    Raises:
        CheckpointError: A key is missing, unexpected or has another shape than the class expects.
    """
    if original.origin.is_own:
        return load_model(original.directory, dtype=dtype, device=device)
    model, place = original.architecture, placement(original.directory, dtype=dtype, device=device)
    sources = Sources()
    try:
        state = {info.name: read_tensor(sources, info) for info in original.tensors}
    finally:
        sources.close()
    loaded, problems = _load(type(model.outline), None, place, config=copy.deepcopy(model.config), state_dict=state)
    _require_strict(original.directory, loaded, problems)
    return loaded


def _require_strict(directory: Path, model: PreTrainedModel, problems: list[str]) -> None:
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{directory} does not load strictly: {'; '.join(problems[:3])}{more}",
            expected=f"exactly the tensors of {type(model).__name__}",
            remedy="Check that config.json and the weights belong together",
        )


def load_unchecked(directory: Path, place: Placement) -> tuple[PreTrainedModel, list[str]]:
    """Load as `load_model` does, and return what is wrong with each key (`missing <name>`) instead of refusing it."""
    return _load(type(Architecture(read_json(directory / "config.json")).outline), directory, place)


def _load(
    model_class: Any, directory: Path | None, place: Placement, **given: Any
) -> tuple[PreTrainedModel, list[str]]:
    loaded: tuple[PreTrainedModel, dict[str, Any]] = model_class.from_pretrained(
        directory,
        **given,
        dtype=place.dtype or "auto",
        device_map=place.device if place.device != "cpu" else None,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    model, info = loaded
    set_plain_generation(model)
    problems = [
        f"{kind.removesuffix('_keys')} {key[0] if isinstance(key, tuple) else key}"
        for kind, keys in info.items()
        for key in sorted(keys)
    ]
    return model.eval(), problems


def set_plain_generation(model: PreTrainedModel) -> None:
    """Set aside what a checkpoint asks of generation: it becomes greedy and as long as it is told."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    for name, value in _PLAIN_GENERATION.items():
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
