"""Names of tensors that were saved from a wrapped model: by torch.compile, FSDP, DDP, Lightning or PEFT.

No class of transformers has modules of these names, so that they come off without asking what the model is. Other
prefixes that every name has, such as a second `model.`, are the trainer's own: `shortened` gives what the names would
be without them, for those who know which names are expected.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mha2gqa.errors import CheckpointError

_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module", "_forward_module")
_IN_FRONT = ("module", "base_model.model")
"""Where every name begins so."""
_ADAPTERS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer", "ia3_l")


@dataclass(frozen=True)
class Unwrapped:
    """Names without wrappers."""

    names: tuple[str, ...]
    """In the order of those that were given."""
    prefixes: tuple[str, ...]
    """What was taken off, each with its dot; empty where nothing was."""


def unwrapped(names: Sequence[str]) -> Unwrapped:
    """Return names without those of wrappers.

    Raises:
        CheckpointError: What is left is no model but an adapter around one, or two tensors would have one name.
    """
    parts = [name.split(".") for name in names]
    prefixes = [one for one in _ANYWHERE if any(one in part for part in parts)]
    parts = [[part for part in name if part not in prefixes] for name in parts]
    while front := next((one for one in _IN_FRONT if _all_begin(parts, one.split("."))), None):
        prefixes.append(front)
        parts = [name[front.count(".") + 1 :] for name in parts]
    left = tuple(".".join(name) for name in parts)
    if prefixes and len(set(left)) < len(left):
        twice = next(name for name, same in itertools.groupby(sorted(left)) if len(list(same)) > 1)
        raise CheckpointError(
            f"Two tensors are {twice!r} without the prefixes of wrappers ({_dotted(prefixes)})",
            expected="each tensor once",
            remedy="Save the model again, without its wrapper",
        )
    if "base_model.model" in prefixes and (found := next(_adapters(left), None)):
        raise CheckpointError(
            f"Tensor {found!r} is an adapter's",
            expected="plain weights: an adapter's K and V matrices have the old number of heads",
            remedy="Merge it into its base model first (peft: merge_and_unload, then save_pretrained)",
        )
    return Unwrapped(left, tuple(f"{prefix}." for prefix in prefixes))


def _all_begin(parts: Iterable[list[str]], beginning: list[str]) -> bool:
    lengths = {len(name) > len(beginning) and name[: len(beginning)] == beginning for name in parts}
    return lengths == {True}


def _adapters(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if not set(_ADAPTERS).isdisjoint(name.split(".")))


def _dotted(prefixes: Iterable[str]) -> str:
    return ", ".join(f"{prefix}." for prefix in prefixes)


def shortened(names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each prefix that all names have, the shortest first, and the names without it."""
    prefix = ""
    parts = [name.split(".") for name in names]
    while parts and _all_begin(parts, parts[0][:1]):
        prefix += f"{parts[0][0]}."
        parts = [name[1:] for name in parts]
        yield prefix, tuple(".".join(name) for name in parts)
