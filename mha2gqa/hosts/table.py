"""Hosts of each model type whose own class knows only MHA, in the order in which they are tried. NEW HOST = ONE ROW."""

from collections.abc import Mapping

from mha2gqa.hosts import bigcode, bigcode_decoders, phi, starcoder2
from mha2gqa.hosts.host import Host
from mha2gqa.hosts.nemotron import PERSIMMON

HOSTS: Mapping[str, tuple[Host, ...]] = {
    "biogpt": (bigcode_decoders.BIOGPT,),
    "codegen": (phi.CODEGEN,),
    "gpt2": (bigcode.GPT2,),
    "gpt_neo": (bigcode.GPT_NEO,),
    "gpt_neox": (phi.GPT_NEOX, starcoder2.GPT_NEOX),
    "gpt_neox_japanese": (starcoder2.GPT_NEOX_JAPANESE,),
    "gptj": (phi.GPTJ,),
    "opt": (bigcode_decoders.OPT,),
    "persimmon": (PERSIMMON,),
    "xglm": (bigcode_decoders.XGLM,),
}
"""Model type of the source -> its hosts."""
