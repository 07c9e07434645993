"""Rotary settings in the keys of former versions, beside those of transformers 5.

transformers 5 keeps the base of the rotation in `rope_parameters` alone. Its former versions, MLX and others read
`rope_theta`, `rope_scaling` and `partial_rotary_factor`, and take defaults without a word where these are missing.
transformers 5 reads both forms as the same.
"""

from typing import Any

_PLAIN = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
"""What is said of a rotation at the frequencies of its base."""


def add_former_keys(config: dict[str, Any]) -> None:
    """Write rotary settings in their former keys, too, also in nested configs; keys that are there stay as they are."""
    for value in config.values():
        if isinstance(value, dict):
            add_former_keys(value)
    held = config.get("rope_parameters")
    if not isinstance(held, dict) or "rope_theta" not in held or any(isinstance(one, dict) for one in held.values()):
        return  # layers of several kinds, each with a base of its own, have other former keys in each class
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in held:
            config.setdefault(key, held[key])
    if held.get("rope_type", "default") != "default" or not held.keys() <= _PLAIN:
        config.setdefault("rope_scaling", dict(held))
