"""Chooses the host of a model, and writes its config.json: what is known of a host before any tensor is looked at.

The tensors are `rehost.py`'s; which hosts there are is `table.py`'s.
"""

from mha2gqa import shipped
from mha2gqa.errors import FamilyError, GroupsError
from mha2gqa.families.blueprint import Blueprint, ConfigJson, blueprint
from mha2gqa.heads.grouping import divisors
from mha2gqa.hosts.host import Host
from mha2gqa.hosts.table import HOSTS

_KEPT_KEYS = ("dtype", "torch_dtype", "transformers_version", "task_specific_params", "quantization_config")
"""Keys of the source's config.json that mean the same in every class, and are kept as they stand."""
_KEPT_VALUES = (
    *("vocab_size", "initializer_range", "use_cache", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Keys that are written as transformers reads them, because the classes' defaults differ."""


def has_hosts(config_json: ConfigJson) -> bool:
    """Return whether the class of a model type knows only MHA, and others are tried for it."""
    return str(config_json.get("model_type")) in HOSTS


def host_config(config_json: ConfigJson, groups: int) -> tuple[Host, ConfigJson]:
    """Return the host that a model type of `HOSTS` is written in for G = `groups`, and its config.json with K = H.

    Raises:
        FamilyError: None can express this model.
        GroupsError: None can with this number of KV heads.
    """
    source = blueprint(config_json)
    objections: list[str] = []
    for host in HOSTS[source.config.model_type]:
        if not (objection := _objection(host, source, groups)):
            return host, _config(host, config_json, source)
        objections.append(f"{host.model_type} cannot express it, because {objection}")
    possible = hosts_by_groups(config_json)
    error = GroupsError if possible else FamilyError
    raise error(
        f"The transformers class of {source.config.model_type!r} knows only multi-head attention, and this model "
        f"cannot be written in another with --groups {groups}: {'; '.join(objections)}",
        expected=f"one of {', '.join(map(str, possible))}" if possible else "",
    )


def config_with_heads(config_json: ConfigJson) -> ConfigJson:
    """Return the config by which the KV heads of a model are counted: its own, or a host's with K = H."""
    hosts = hosts_by_groups(config_json) if has_hosts(config_json) else {}
    return host_config(config_json, max(hosts))[1] if hosts else config_json


def hosts_by_groups(config_json: ConfigJson) -> dict[int, Host]:
    """Return every G that a host of this model allows, H included, and which host; least G first."""
    source = blueprint(config_json)
    hosts = HOSTS.get(source.config.model_type, ())
    able = {
        groups: [host for host in hosts if not _objection(host, source, groups)] for groups in divisors(_heads(source))
    }
    return {groups: found[0] for groups, found in able.items() if found}


def _heads(source: Blueprint) -> int:
    return int(source.config.get_text_config(decoder=True).num_attention_heads)


def _objection(host: Host, source: Blueprint, groups: int) -> str:
    name = type(source.model).__name__
    if name not in host.architectures:
        return f"it has no class like {name}"
    return host.objection(source.config, groups)


def _config(host: Host, config_json: ConfigJson, source: Blueprint) -> ConfigJson:
    architecture = host.architectures[type(source.model).__name__]
    named = {"model_type": host.model_type, "architectures": [architecture]}
    if host.shipped:
        return config_json | host.config(source.config) | named | {"auto_map": shipped.auto_map(host.model_type)}
    kept = {key: config_json[key] for key in _KEPT_KEYS if key in config_json}
    values = {key: getattr(source.config, key) for key in _KEPT_VALUES if hasattr(source.config, key)}
    return named | values | host.config(source.config) | kept
