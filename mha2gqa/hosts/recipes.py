"""Short forms for recipes: what most tensors of a host need.

What only one host needs stands in that host's file.
"""

from collections.abc import Iterable, Iterator, Mapping

from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.hosts.host import Make, Recipe

WEIGHT_AND_BIAS = ("weight", "bias")


def renamed(
    modules: Mapping[str, str], source: str = "", host: str = "", parts: Iterable[str] = WEIGHT_AND_BIAS
) -> Iterator[Recipe]:
    """Give the tensors of modules as they are, under other names.

    Args:
        modules: Module of the host -> module of the source.
        source: What comes before each name of the source.
        host: What comes before each name of the host.
        parts: Tensors of each module.
    """
    for new, old in modules.items():
        for part in parts:
            yield Recipe(name=f"{host}{new}.{part}", sources=(f"{source}{old}.{part}",))


def made(name: str, make: Make, *sources: str) -> Recipe:
    """Give a tensor that is made of the source's."""
    return Recipe(name=name, sources=sources, make=make)


def zeros(name: str, beside: str) -> Recipe:
    """Give a tensor of zeros, which stands in the file beside one of the source's."""
    return Recipe(name=name, sources=(beside,), fill=0.0)


def linear(name: str, source: str, *, has_bias: bool) -> Iterator[Recipe]:
    """Give a linear layer as it is, with a bias of zeros where the source has none."""
    yield from renamed({name: source}, parts=("weight",))
    if has_bias:
        yield from renamed({name: source}, parts=("bias",))
    else:
        yield zeros(f"{name}.bias", f"{source}.weight")


def named(keys: Mapping[str, str], config: object) -> ConfigJson:
    """Return the host's keys of a config with the values of the source's: host's key -> source's."""
    return {new: getattr(config, old) for new, old in keys.items()}
