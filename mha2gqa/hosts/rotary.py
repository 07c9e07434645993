"""How the config of a host says which rows of a head are rotated, and how fast.

Half-split planes of the first rows of each head, of a given base, in the keys of old and of new loaders.
"""

import math
from typing import TYPE_CHECKING, Any

from mha2gqa.families.blueprint import ConfigJson

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def rotary(rows: int, width: int, theta: float) -> ConfigJson:
    """Return the keys that rotate the first `rows` of the `width` rows of a head."""
    factor = rows / width
    if int(width * factor) < rows:  # loaders multiply and cut off
        factor = math.nextafter(factor, 2.0)
    parameters = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor}
    return {"rope_parameters": parameters, "rope_theta": theta, "partial_rotary_factor": factor}


def same_rotary(config: "PreTrainedConfig") -> ConfigJson:
    """Return the keys of a source that rotates as the host does; rescaled frequencies exist in new keys alone."""
    parameters = _parameters(config)
    old = ("rope_theta", "partial_rotary_factor") if is_default(config) else ()
    return {"rope_parameters": parameters} | {key: parameters[key] for key in old if key in parameters}


def spread_rotary(config: "PreTrainedConfig") -> ConfigJson:
    """Return the keys of a host that rotates all rows of a head, those that the source leaves alone at frequency 0.

    The frequencies are theta^(-2p/rows): those of a base theta^(width/rows) over the whole width.
    """
    parameters, rows, width = _parameters(config), rotary_rows(config), head_width(config)
    if rows == width:
        return {"rope_parameters": parameters | {"partial_rotary_factor": 1.0}, "rope_theta": parameters["rope_theta"]}
    theta = float(parameters["rope_theta"]) ** (width / rows)
    factor = rows / width
    return {"rope_parameters": {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": factor}}


def head_width(config: "PreTrainedConfig") -> int:
    """Return E."""
    return int(config.hidden_size) // int(config.num_attention_heads)


def rotary_rows(config: "PreTrainedConfig") -> int:
    """Return how many rows of a head a source of the GPT-NeoX kind rotates."""
    return int(head_width(config) * _parameters(config).get("partial_rotary_factor", 1.0))


def is_default(config: "PreTrainedConfig") -> bool:
    """Return whether a source's frequencies are not rescaled for longer contexts."""
    return bool(_parameters(config).get("rope_type", "default") == "default")


def _parameters(config: "PreTrainedConfig") -> dict[str, Any]:
    return dict(config.rope_parameters)
