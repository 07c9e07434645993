"""Hosts of each model type whose own class knows only MHA, in the order in which they are tried. NEW HOST = ONE ROW.

A row names the modules of this folder whose `HOSTS` have one for the model type; they are imported when it is met.
"""

from collections.abc import Mapping
from importlib import import_module

from mha2gqa import shipped
from mha2gqa.hosts.host import Host

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


def hosts_of(model_type: str) -> tuple[Host, ...]:
    """Return the hosts of a model type; none where its own class has a number of KV heads, or no other is known."""
    return tuple(import_module(f"mha2gqa.hosts.{name}").HOSTS[model_type] for name in HOSTS.get(model_type, ()))
