"""What the contract tests compare with: running a tiny checkpoint, and an oracle that knows nothing of the converter.

A conversion is right when the converted model answers as the *source's own class and config* do with every pooled KV
head written out once per head of its group. `repeated_source` is that model; `pooled` gives the tensors that
averaging must have produced. Both read a tensor's layout from the difference between the source's and the converted
shape, and from the few families named below whose tensors hold more than KV heads.

Letters: K KV heads of the source, G of the result, R = K / G, E head width, H query heads.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutput

from .cases import HEADS, Case
from .tiny import model_class_name

Tensors = dict[str, Tensor]

FUSED = frozenset({"dbrx", "molmo2", "phi3", "phi4_multimodal"})
"""Q, K and V in one tensor: H*E rows, then K*E, then K*E."""
INTERLEAVED = frozenset({"falcon", "gpt_bigcode"})
"""Q, K and V in one tensor, head by head; the result of a conversion is laid out as `FUSED`."""
_HEAD_NORM = re.compile(r"(.*\.k_layernorm\.norms)\.(\d+)\.(weight|bias)$")


# ---------------------------------------------------------------------------------------------- running


def input_ids(length: int = 12, seed: int = 5) -> Tensor:
    """Token ids [2, length] below the special tokens that the tiny configs put at 100 and above."""
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(seed))


def inputs(case: Case) -> dict[str, Any]:
    """Keyword arguments of the model's forward and of `generate`."""
    decoder_ids = input_ids(7, seed=3)
    if case.run == "seq2seq":
        return {"input_ids": input_ids(9), "decoder_input_ids": decoder_ids}
    if case.run == "codes":
        return {"input_ids": input_ids(9), "decoder_input_ids": decoder_ids[:, :, None].expand(2, 7, 9).contiguous()}
    if case.run == "encoded":
        states = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(3))
        encoded = BaseModelOutput(last_hidden_state=states)
        object.__setattr__(encoded, "attention_mask", torch.ones(2, 9, dtype=torch.long))
        return {"encoder_outputs": encoded, "decoder_input_ids": decoder_ids}
    if case.run == "streamed":
        audio = torch.randn(2, 48, 64, generator=torch.Generator().manual_seed(3))
        return {"input_ids": input_ids(), "encoder_inputs_embeds": audio}
    return {"input_ids": input_ids()}


@torch.no_grad()
def logits(model: PreTrainedModel, case: Case) -> Tensor:
    """Logits of one forward pass, as float32."""
    extra = {} if case.caches or case.run == "masked" else {"use_cache": False}
    return model(**inputs(case), **extra).logits.float()


@torch.no_grad()
def greedy(model: PreTrainedModel, case: Case) -> Tensor:
    """Token ids of a few steps of greedy generation."""
    return model.generate(
        **inputs(case), max_new_tokens=5, do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=None
    )


@dataclass(frozen=True)
class CachedLayer:
    """Keys and values that one layer holds after a forward pass."""

    heads: int
    nbytes: int


@torch.no_grad()
def cached_layers(model: PreTrainedModel, case: Case) -> list[CachedLayer] | None:
    """The measured cache, self-attention and cross-attention; None where the model returns none."""
    cache = getattr(model(**inputs(case), use_cache=True), "past_key_values", None) if case.caches else None
    if cache is None:
        return None
    both = isinstance(cache, EncoderDecoderCache)
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if both else (cache,)
    layers = [_cached_states(layer) for part in parts for layer in part.layers]
    return [CachedLayer(states[0].shape[1], sum(state.nbytes for state in states)) for states in layers if states]


def _cached_states(layer: CacheLayerMixin) -> list[Tensor]:
    """Keys and values [B, heads, T, E]; a layer without any, or not yet filled, gives none."""
    states = [getattr(layer, name, None) for name in ("keys", "values", "prefill_keys", "prefill_values")]
    return [state for state in states if state is not None and state.dim() == 4]


# ---------------------------------------------------------------------------------------------- files


def load_strict(directory: Path, case: Case) -> PreTrainedModel:
    """Load with the family's class; a missing, unexpected or mismatched key is an error."""
    model_class = getattr(transformers, model_class_name(case.model_type))
    model, info = model_class.from_pretrained(directory, output_loading_info=True)
    problems = {f"{kind}: {key}" for kind, keys in info.items() for key in keys}
    assert not problems, f"{directory.name} does not load cleanly: {sorted(problems)[:6]}"
    return model.eval()


def read_tensors(directory: Path) -> Tensors:
    """Every tensor of the checkpoint, by its name in the file."""
    tensors: Tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def read_config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def write_checkpoint(directory: Path, tensors: Tensors, config: Mapping[str, Any], like: Path) -> None:
    """A checkpoint of `tensors` and `config`, with the other small files of `like`."""
    directory.mkdir()
    for file in like.iterdir():
        if file.name != "config.json" and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, directory)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )


# ---------------------------------------------------------------------------------------------- oracle


def repeated_source(
    original: PreTrainedModel, source: Path, before: Tensors, after: Tensors, case: Case, groups: int
) -> PreTrainedModel:
    """Return the source with every KV head that the conversion pooled repeated R times.

    Args:
        original: The source's model. Where its modules have the names of its file, it is what gets the tensors and is
            returned; for others a checkpoint is written beside the source, and loaded.
        source: Its checkpoint.
        before: What that holds.
        after: What the converted one holds.
        case: The family.
        groups: KV heads of the result.
    """
    before, after = _stacked(before), _stacked(after)
    tensors = _unstacked(
        {
            name: tensor if tensor.shape == after[name].shape else _repeated(name, tensor, after[name], case, groups)
            for name, tensor in before.items()
        }
    )
    own = original.state_dict()
    filled = {own[name].data_ptr() for name in tensors.keys() & own.keys()}
    if tensors.keys() <= own.keys() and all(tensor.data_ptr() in filled for tensor in own.values()):
        original.load_state_dict(tensors, strict=False)  # what is tied is in the file once
        return original
    directory = source.with_name(f"oracle-{groups}")
    write_checkpoint(directory, tensors, read_config(source), like=source)
    return load_strict(directory, case)


def pooled(before: Tensors, after: Tensors, case: Case, groups: int) -> Tensors:
    """The tensors that averaging each group's KV heads must give, by their names in the converted file."""
    before, after = _stacked(before), _stacked(after)
    return _unstacked(
        {
            name: tensor if tensor.shape == after[name].shape else _averaged(name, tensor, after[name], case, groups)
            for name, tensor in before.items()
        }
    )


def _repeated(name: str, before: Tensor, after: Tensor, case: Case, groups: int) -> Tensor:
    """`after` in the layout of `before`."""
    times = case.source_heads // groups
    if case.model_type in FUSED:
        q, k, v = _split_blocks(after, groups)
        return torch.cat([q, k.repeat_interleave(times, 0).flatten(0, 1), v.repeat_interleave(times, 0).flatten(0, 1)])
    if case.model_type in INTERLEAVED:
        q, k, v = _split_blocks(after, groups)
        shared = [part.repeat_interleave(times, 0) for part in (k, v)]
        return torch.stack([q.unflatten(0, (HEADS, -1)), *shared], 1).flatten(0, 2)
    if name.endswith("dt_proj.weight"):
        # One output per KV head from all value heads: a shared input is the sum of its copies.
        rows = after.unflatten(1, (groups, -1)).repeat_interleave(times, 0).repeat_interleave(times, 1)
        return (rows / times).flatten(1, 2)
    axis = _axis(before, after)
    heads = _heads(name, case, groups)
    times = before.shape[axis] // after.shape[axis]
    return after.unflatten(axis, (heads, -1)).repeat_interleave(times, axis).flatten(axis, axis + 1)


def _averaged(name: str, before: Tensor, after: Tensor, case: Case, groups: int) -> Tensor:
    """`before` with the heads of each group averaged, in the layout of `after`."""
    if case.model_type in FUSED:
        q, k, v = _split_blocks(before, case.source_heads)
        return torch.cat([q, *(_means(part, groups).flatten(0, 1) for part in (k, v))])
    if case.model_type in INTERLEAVED:
        q, k, v = before.unflatten(0, (HEADS, 3, -1)).unbind(1)
        return torch.cat([q.flatten(0, 1), *(_means(part, groups).flatten(0, 1) for part in (k, v))])
    if name.endswith("dt_proj.weight"):
        return (
            before.unflatten(1, (groups, case.source_heads // groups, -1))
            .sum(2)
            .flatten(1, 2)
            .unflatten(0, (groups, -1))
            .mean(1)
        )
    axis = _axis(before, after)
    heads = _heads(name, case, groups)
    times = before.shape[axis] // after.shape[axis]
    return before.unflatten(axis, (heads, times, -1)).mean(axis + 1).flatten(axis, axis + 1)


def _axis(before: Tensor, after: Tensor) -> int:
    axes = [axis for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)) if old != new]
    assert len(axes) == 1, f"shape {tuple(before.shape)} became {tuple(after.shape)}"
    return axes[0]


def _heads(name: str, case: Case, groups: int) -> int:
    """KV heads of the converted tensor `name`."""
    if case.model_type == "mimo_v2_flash":
        # Sliding layers, here the even ones, have twice the KV heads of the config.
        layer = int(re.search(r"layers\.(\d+)\.", name).group(1))
        return 2 * groups if layer % 2 == 0 else groups
    return groups


def _split_blocks(tensor: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [q; k; v] as q [H*E, ...], k [heads, E, ...], v [heads, E, ...]."""
    width = tensor.shape[0] // (HEADS + 2 * heads)
    q, k, v = tensor.split([HEADS * width, heads * width, heads * width])
    return q, k.unflatten(0, (heads, -1)), v.unflatten(0, (heads, -1))


def _means(heads: Tensor, groups: int) -> Tensor:
    return heads.unflatten(0, (groups, -1)).mean(1)


def _stacked(tensors: Tensors) -> Tensors:
    """Norms kept as one tensor per head, `norms.0.weight`, `norms.1.weight`, ..., as one tensor `norms.*.weight`."""
    out: Tensors = {}
    per_head: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _HEAD_NORM.match(name):
            per_head.setdefault(f"{match[1]}.*.{match[3]}", {})[int(match[2])] = tensor
        else:
            out[name] = tensor
    return out | {name: torch.cat([heads[i] for i in range(len(heads))]) for name, heads in per_head.items()}


def _unstacked(tensors: Tensors, width: int = 16) -> Tensors:
    out: Tensors = {}
    for name, tensor in tensors.items():
        if ".*." in name:
            out |= {name.replace("*", str(i)): norm.clone() for i, norm in enumerate(tensor.split(width))}
        else:
            out[name] = tensor
    return out
