"""Chooses the host of a model, and writes its config.json: what is known of a host before any tensor is looked at.

The hosts of each model type stand here in the order in which they are tried: NEW HOST = ONE ROW. A row names the
modules of this folder whose `HOSTS` have one for the model type; they are imported when it is met. The tensors are
`rehost.py`'s.
"""

from collections.abc import Mapping
from importlib import import_module

from mha2gqa import shipped
from mha2gqa.errors import FamilyError, GroupsError
from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.heads.grouping import divisors
from mha2gqa.hosts.host import Host
from mha2gqa.hosts.shipped import auto_map
from mha2gqa.model.architecture import Architecture

NATIVE: Mapping[str, tuple[str, ...]] = {
    "biogpt": ("bigcode_decoders",),
    "codegen": ("phi",),
    "gpt2": ("bigcode",),
    "gpt_neo": ("bigcode",),
    "gpt_neox": ("phi", "starcoder2"),
    "gpt_neox_japanese": ("starcoder2",),
    "gptj": ("phi",),
    "opt": ("bigcode_decoders",),
    "persimmon": ("nemotron",),
    "xglm": ("bigcode_decoders",),
}
"""Model type of the source -> modules with its hosts among transformers' own classes."""

HOSTS: Mapping[str, tuple[str, ...]] = {
    **NATIVE,
    **{source: (*NATIVE.get(source, ()), "shipped") for source in shipped.SOURCES},
}
"""Model type of the source -> modules with its hosts, those that ship last."""
_KEPT_KEYS = ("dtype", "torch_dtype", "transformers_version", "task_specific_params", "quantization_config")
"""Keys of the source's config.json that mean the same in every class, and are kept as they stand."""
_KEPT_VALUES = (
    *("vocab_size", "initializer_range", "use_cache", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Keys that are written as transformers reads them, because the classes' defaults differ."""


def hosts_of(model_type: str) -> tuple[Host, ...]:
    """Return the hosts of a model type; none where its own class has a number of KV heads, or no other is known."""
    return tuple(import_module(f"mha2gqa.hosts.{name}").HOSTS[model_type] for name in HOSTS.get(model_type, ()))


def has_hosts(model: Architecture) -> bool:
    """Return whether the class of a model type knows only MHA, and others are tried for it."""
    return str(model.config_json.get("model_type")) in HOSTS


def host_config(model: Architecture, groups: int) -> tuple[Host, ConfigJson]:
    """Return the host that a model type of `HOSTS` is written in for G = `groups`, and its config.json with K = H.

    Raises:
        FamilyError: None can express this model.
        GroupsError: None can with this number of KV heads.
    """
    objections: list[str] = []
    for host in hosts_of(model.model_type):
        if not (objection := objection_to(host, model, groups)):
            return host, write_config(host, model)
        objections.append(f"{host.model_type} cannot express it, because {objection}")
    possible = hosts_by_groups(model)
    error = GroupsError if possible else FamilyError
    raise error(
        f"The transformers class of {model.model_type!r} knows only multi-head attention, and this model "
        f"cannot be written in another with --groups {groups}: {'; '.join(objections)}",
        expected=f"one of {', '.join(map(str, possible))}" if possible else "",
    )


def counted(model: Architecture) -> Architecture:
    """Return the architecture by which the KV heads of a model are counted: its own, or a host's with K = H."""
    hosts = hosts_by_groups(model) if has_hosts(model) else {}
    return Architecture(host_config(model, max(hosts))[1]) if hosts else model


def hosts_by_groups(model: Architecture) -> dict[int, Host]:
    """Return every G that a host of this model allows, H included, and which host; least G first."""
    hosts = hosts_of(model.model_type)
    able = {
        groups: [host for host in hosts if not objection_to(host, model, groups)] for groups in divisors(_heads(model))
    }
    return {groups: found[0] for groups, found in able.items() if found}


def _heads(model: Architecture) -> int:
    return int(model.text_config.num_attention_heads)


def objection_to(host: Host, model: Architecture, groups: int) -> str:
    """Return why a host cannot express a model with G = `groups`; empty where it can."""
    name = model.blueprint.architecture
    if name not in host.architectures:
        return f"it has no class like {name}"
    return host.objection(model.settings, groups)


def write_config(host: Host, model: Architecture) -> ConfigJson:
    """Return the config.json of a model in the class of a host, with K = H where its own class knows only MHA."""
    architecture = host.architectures[model.blueprint.architecture]
    named = {"model_type": host.model_type, "architectures": [architecture]}
    if host.shipped:
        ships = {"auto_map": auto_map(host.model_type)}
        return model.config_json | host.config(model.settings) | named | ships
    kept = {key: model.config_json[key] for key in _KEPT_KEYS if key in model.config_json}
    values = {key: getattr(model.settings, key) for key in _KEPT_VALUES if hasattr(model.settings, key)}
    return named | values | host.config(model.settings) | kept
