"""Hosts whose class ships with the checkpoint: the source's own tensors under their own names, and a count of KV heads.

Only GPT-2's attention changes its form: `c_attn` and `c_proj` are transposed, so that their rows are outputs as
everywhere else. Encoder-decoders get a count for each kind of attention, `decoder`, `cross` and `encoder`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mha2gqa import shipped
from mha2gqa.families.blueprint import Blueprint, said_of
from mha2gqa.families.table import family
from mha2gqa.hosts.host import Host, Recipe, same_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from mha2gqa.families.attention import AttentionLayer

_REFUSED = ("bloom", "gpt2", "mpt", "opt")
"""Families whose code llama.cpp, MLX and vLLM were seen to refuse (docs/results/engines.md)."""
_LOST = ("bart", "bloom", "gpt2", "marian", "t5")
"""Families that CTranslate2 runs, by the names of their config classes: those of ours it does not know."""
_TRANSPOSED = re.compile(r"\.attn\.c_(attn|proj)\.weight$")


@dataclass(frozen=True)
class _Architectures(Mapping[str, str]):
    """Class of the source -> class of the host. The classes are looked up, and imported, when they are asked for."""

    model_type: str

    def __getitem__(self, name: str) -> str:
        return _classes(self.model_type)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_classes(self.model_type))

    def __len__(self) -> int:
        return len(_classes(self.model_type))


def _classes(model_type: str) -> Mapping[str, str]:
    ships = said_of(model_type, "ships")
    return shipped.architectures(model_type) if ships is None else ships["architectures"]


def auto_map(model_type: str) -> dict[str, str]:
    """Return what `config.json` says of the code beside it."""
    ships = said_of(model_type, "ships")
    return shipped.auto_map(model_type) if ships is None else dict(ships["auto_map"])


def _host(model_type: str) -> Host:
    counts = family(model_type).counts
    return Host(
        model_type=model_type,
        config=lambda config: dict.fromkeys(counts, config.num_attention_heads),
        tensors=_gpt2_tensors if model_type == "gpt2_gqa" else same_tensors,
        objection=_objection,
        architectures=_Architectures(model_type),
        shipped=True,
    )


def _gpt2_tensors(source: Blueprint) -> Iterable[Recipe]:
    for recipe in same_tensors(source):
        transposed = _TRANSPOSED.search(recipe.name)
        yield Recipe(name=recipe.name, sources=recipe.sources, make=lambda weight: weight.T) if transposed else recipe


def _objection(config: "PreTrainedConfig", groups: int) -> str:
    heads = {getattr(config, f"{half}_attention_heads", None) for half in ("encoder", "decoder")}
    return f"its encoder and decoder have different numbers of heads ({heads})" if len(heads) > 1 else ""


HOSTS: Mapping[str, Host] = {source: _host(f"{source}_gqa") for source in shipped.SOURCES}
"""Model type of the source -> the host that ships."""


def targets(layers: "Sequence[AttentionLayer]") -> list[str]:
    """Return the modules of its attention that adapters have to be told of."""
    weights = [name for layer in layers for name in layer.changed if name.endswith(".weight") and name != layer.output]
    return [*dict.fromkeys(name.split(".")[-2] for name in weights)]


def known_targets(model_type: str) -> list[str] | None:
    """Return the same without looking at a model; None where it has to be."""
    ships = said_of(model_type, "ships")
    return None if ships is None else list(ships["targets"])


def engines(model_type: str, inner: Sequence[str]) -> str:
    """Return what runs a class that ships, and what adapters have to be told of its attention, as sentences.

    Args:
        model_type: Of the class.
        inner: The modules that adapters have to be told of.
    """
    source = model_type.removesuffix("_gqa")
    others = "llama.cpp, MLX and vLLM refuse it" if source in _REFUSED else "other engines were not tried with it"
    lost = "; CTranslate2, which runs the original, does not run it" * (source in _LOST)
    adapters = f" LoRA (peft) wants target_modules={[*inner]}." if inner else ""
    runs = "transformers runs it, with trust_remote_code=True"
    return f"The class comes as code beside the weights: {runs}; {others}{lost}.{adapters}"
