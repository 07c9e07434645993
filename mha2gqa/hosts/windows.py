"""Classes with a sliding window: which keys give them one, and which of them express a model whose own class has none.

`CLASSES` has a row for each class that keeps a window exactly: how its config says it, whether layer by layer, and
which engines honour it. `HOSTS` names, for a model whose own class cannot, the others in the order in which they are
tried; the result is the same model with every token in reach, and only then gets its window. NEW HOST = ONE ROW EACH.

The classes' defaults differ (epsilons, tying, rotary embeddings, kinds of layers), so that every key is written that
source and host both know. Each row is held by a test against the source's own class under a banded mask.

Legend: W tokens of the window, L layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mha2gqa.errors import FamilyError
from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.choice import objection_to, write_config
from mha2gqa.hosts.host import Host, Recipe, same_tensors
from mha2gqa.hosts.recipes import made
from mha2gqa.hosts.rotary import is_default, same_rotary
from mha2gqa.model.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

SLIDING, FULL = "sliding_attention", "full_attention"
Keys: TypeAlias = "Callable[[PreTrainedConfig, int, Sequence[bool]], ConfigJson]"
"""Gives the keys of a config for W, and for each layer whether it has the window."""
_NO_SINK = -1e4
"""Score of a sink that takes no weight from any token: its exponential is 0 in every dtype."""
_TRANSFORMERS = "Read by transformers; in vLLM through its transformers backend; other engines may not know the class."


_NOT_LOOKED_UP = "transformers honours it; what engines do with the window of this class was not looked up."


@dataclass(frozen=True, kw_only=True)
class Windowed:
    """A class that can have a window."""

    keys: Keys
    by_layer: bool = True
    """Whether single layers can do without; else all layers share one mask."""
    rotates_all: bool = True
    """False where layers without a window have no rotary embedding, so that a host's have one as long as the model."""
    engines: str = _TRANSFORMERS
    """Which engines honour the window, as sentences."""


def _typed(config: "PreTrainedConfig", window: int, sliding: Sequence[bool]) -> ConfigJson:
    return {"sliding_window": window, "layer_types": [SLIDING if one else FULL for one in sliding]}


def _plain(config: "PreTrainedConfig", window: int, sliding: Sequence[bool]) -> ConfigJson:
    """Return the one key of classes with one mask; kinds of layers would break their cache."""
    return {"sliding_window": window if any(sliding) else None}


def _switched(config: "PreTrainedConfig", window: int, sliding: Sequence[bool], *, typed: bool = True) -> ConfigJson:
    keys = {"use_sliding_window": any(sliding), "sliding_window": window if any(sliding) else None}
    kinds = {"layer_types": [SLIDING if one else FULL for one in sliding]} if typed else {}
    return keys | kinds | ({} if config.model_type == "smollm3" else {"max_window_layers": 0})


_LOST = (
    "llama.cpp and MLX load the result and silently ignore the window (run, with mistral and qwen2); SGLang does not "
    "honour it."
)
_QWEN = Windowed(
    keys=_switched,
    engines="vLLM honours it where all layers have the window (run, with qwen2), and for qwen2 also where some have; "
    + _LOST,
)
CLASSES: Mapping[str, Windowed] = {
    "mistral": Windowed(keys=_plain, by_layer=False, engines=f"vLLM (run) and TensorRT-LLM honour it; {_LOST}"),
    "phi3": Windowed(keys=_plain, by_layer=False, engines=_NOT_LOOKED_UP),
    "starcoder2": Windowed(keys=_plain, by_layer=False, engines=_NOT_LOOKED_UP),
    "mixtral": Windowed(keys=_plain, by_layer=False, engines=_NOT_LOOKED_UP),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "qwen2_moe": _QWEN,
    "qwen3_moe": Windowed(keys=partial(_switched, typed=False), by_layer=False, engines=_QWEN.engines),
    "cwm": Windowed(keys=_typed, engines="vLLM honours it, layer by layer; llama.cpp does not know the class."),
    "ministral": Windowed(keys=_typed),
    "smollm3": Windowed(keys=_switched),
    "olmo3": Windowed(keys=_typed, engines="vLLM and llama.cpp honour it, layer by layer."),
    "vaultgemma": Windowed(keys=_typed),
    "cohere2": Windowed(keys=_typed, by_layer=False, rotates_all=False, engines=_NOT_LOOKED_UP),
    "granite_swa": Windowed(keys=_typed),
    "nemotron-nas": Windowed(
        keys=_typed,
        engines="transformers honours it by the code beside the weights, and vLLM, layer by layer; llama.cpp does not.",
    ),
}
"""Model type -> how it has a window."""


def _base(model_type: str, config: "PreTrainedConfig") -> ConfigJson:
    """Return every key that a source and its host know by the same name, and the host's without a window."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    general = PreTrainedConfig().to_dict().keys()
    known = CONFIG_MAPPING[model_type]().to_dict().keys() - general - {"model_type", "layer_types", "sliding_window"}
    shared = {key: value for key, value in config.to_dict().items() if key in known}
    windowed = CLASSES[model_type]
    sliding = [not windowed.rotates_all] * config.num_hidden_layers
    return (
        shared | same_rotary(config) | windowed.keys(_as(config, model_type), config.max_position_embeddings, sliding)
    )


def _as(config: "PreTrainedConfig", model_type: str) -> Any:
    """Return what `Keys` read of a config, for a model that will be of another type."""
    return type("_Sketch", (), {"model_type": model_type, "num_hidden_layers": config.num_hidden_layers})


def _head_dim(config: "PreTrainedConfig") -> ConfigJson:
    return {"head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads}


def _smollm3(config: "PreTrainedConfig") -> ConfigJson:
    return {"no_rope_layers": [1] * config.num_hidden_layers}


def _olmo3(config: "PreTrainedConfig") -> ConfigJson:
    return {"rope_parameters": {kind: dict(config.rope_parameters) for kind in (SLIDING, FULL)}}


def _vaultgemma(config: "PreTrainedConfig") -> ConfigJson:
    own = {"hidden_activation": config.hidden_act, "query_pre_attn_scalar": config.head_dim}
    return own | {"attn_logit_softcapping": None, "final_logit_softcapping": None}


def _granite(config: "PreTrainedConfig") -> ConfigJson:
    return {"layer_rope_theta": [config.rope_parameters["rope_theta"]] * config.num_hidden_layers}


def _vaultgemma_tensors(source: Blueprint) -> Iterator[Recipe]:
    for recipe in same_tensors(source):
        name = recipe.name.replace("post_attention_layernorm", "pre_feedforward_layernorm")
        yield Recipe(name=name, sources=recipe.sources)


def _granite_tensors(source: Blueprint) -> Iterator[Recipe]:
    yield from same_tensors(source)
    for name in source.module_shapes:
        if name.endswith("self_attn.q_proj.weight"):
            sinks = name.replace("q_proj.weight", "sinks")
            yield Recipe(name=sinks, sources=(name,), fill=_NO_SINK)


def _phi3_tensors(source: Blueprint) -> Iterator[Recipe]:
    """Give q, k, v, gate and up as tensors of their own."""
    config = source.config
    width = _head_dim(config)["head_dim"]
    kv = config.num_key_value_heads * width
    fused: Mapping[str, tuple[tuple[str, ...], list[int]]] = {
        "qkv_proj": (("q_proj", "k_proj", "v_proj"), [config.num_attention_heads * width, kv, kv]),
        "gate_up_proj": (("gate_proj", "up_proj"), [config.intermediate_size] * 2),
    }
    for name in source.module_shapes:
        found = next((one for one in fused if f"{one}." in name), None)
        if found is None:
            yield Recipe(name=name, sources=(name,))
            continue
        parts, rows = fused[found]
        for number, part in enumerate(parts):
            yield made(name.replace(found, part), partial(_rows, rows=rows, number=number), name)


def _rows(tensor_RN: "torch.Tensor", rows: list[int], number: int) -> "torch.Tensor":
    part_RN: torch.Tensor = tensor_RN.split(rows)[number]
    return part_RN


def _bare(config: "PreTrainedConfig", groups: int) -> str:
    """Refuse biases, which most classes like Llama do not have."""
    return "it has biases" if config.attention_bias or config.mlp_bias else ""


def _cwm(config: "PreTrainedConfig", groups: int) -> str:
    if config.eos_token_id is None or not isinstance(config.bos_token_id, int):
        return "its config names no first and last token, and the class would take others"
    return "it has biases" if config.attention_bias else ""


def _phi3(config: "PreTrainedConfig", groups: int) -> str:
    is_whole = config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
    return "" if is_default(config) and is_whole else "it rescales its rotary embedding, or rotates a part of each head"


def _cohere(config: "PreTrainedConfig", groups: int) -> str:
    return "it normalises queries and keys" if config.use_qk_norm else ""


def _granite_objection(config: "PreTrainedConfig", groups: int) -> str:
    return "" if is_default(config) else "it rescales its rotary embedding"


def _host(
    classes: tuple[str, str],
    model_type: str,
    own: "Callable[[PreTrainedConfig], ConfigJson]",
    objection: "Callable[[PreTrainedConfig, int], str]" = lambda config, groups: "",
    tensors: Callable[[Blueprint], Iterable[Recipe]] = same_tensors,
) -> Host:
    """Return a host: how the source's classes and its own begin, and what its config has besides shared keys."""

    def refuses(config: "PreTrainedConfig", groups: int) -> str:
        window = getattr(config, "sliding_window", None)
        return f"its layers have a window of {window} tokens already" if window else objection(config, groups)

    return Host(
        model_type=model_type,
        config=lambda config: _base(model_type, config) | own(config),
        tensors=tensors,
        objection=refuses,
        architectures={f"{classes[0]}{kind}": f"{classes[1]}{kind}" for kind in ("ForCausalLM", "Model")},
    )


HOSTS: Mapping[str, tuple[Host, ...]] = {
    "llama": (
        _host(("Llama", "Mistral"), "mistral", _head_dim, _bare),
        _host(("Llama", "Cwm"), "cwm", _head_dim, _cwm),
        _host(("Llama", "Ministral"), "ministral", _head_dim, _bare),
        _host(("Llama", "SmolLM3"), "smollm3", _smollm3),
    ),
    "mistral": (_host(("Mistral", "Ministral"), "ministral", _head_dim),),
    "phi3": (_host(("Phi3", "Ministral"), "ministral", _head_dim, _phi3, _phi3_tensors),),
    "olmo2": (_host(("Olmo2", "Olmo3"), "olmo3", _olmo3),),
    "gemma": (_host(("Gemma", "VaultGemma"), "vaultgemma", _vaultgemma, tensors=_vaultgemma_tensors),),
    "cohere": (_host(("Cohere", "Cohere2"), "cohere2", lambda config: {}, _cohere),),
    "granite": (_host(("Granite", "GraniteSWA"), "granite_swa", _granite, _granite_objection, _granite_tensors),),
}
"""Model type whose own class has no window, or none by layer -> others that express it, in the order of trying."""


def find_host(model: Architecture, *, by_layer: bool) -> tuple[Host, ConfigJson] | None:
    """Return the host of a model, and its config without a window; None where its own class can have one.

    Raises:
        FamilyError: No class expresses the model exactly.
    """
    host = choose_host(model, by_layer=by_layer)
    return None if host is None else (host, write_config(host, model))


def choose_host(model: Architecture, *, by_layer: bool) -> Host | None:
    """Return the host of a model; None where its own class can have a window.

    Args:
        model: The model.
        by_layer: Whether some layers are to keep every token.

    Raises:
        FamilyError: No class expresses the model exactly.
    """
    own = CLASSES.get(model.model_type)
    if own is not None and (own.by_layer or not by_layer):
        return None
    objections = ["all its layers share one mask"] if own is not None else []
    for host in HOSTS.get(model.model_type, ()):
        if by_layer and not CLASSES[host.model_type].by_layer:
            objections.append(f"{host.model_type} has one mask for all layers")
        elif objection := objection_to(host, model, model.query_heads):
            objections.append(f"{host.model_type} cannot express it, because {objection}")
        else:
            return host
    why = f": {'; '.join(objections)}" if objections else ""
    known = ", ".join(sorted({*CLASSES, *HOSTS}))
    raise FamilyError(
        f"No class of transformers has a model of type {model.model_type!r} "
        f"with a window on {'some' if by_layer else 'all'} layers{why}",
        expected="the same window on all layers" if by_layer and (own or objections) else f"one of {known}",
    )
