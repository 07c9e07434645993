"""Short forms for recipes: what most tensors of a host need.

A `Names` maps the modules of one layer, or of the whole model, and gives a recipe for each of their tensors. What
only one host needs stands in that host's file.
"""

from collections.abc import Iterable, Iterator, Mapping

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


def made(name: str, source: str, make: Make) -> Recipe:
    """Give a tensor that is made of one of the source's."""
    return Recipe(name=name, sources=(source,), make=make)


def zeros(name: str, beside: str) -> Recipe:
    """Give a tensor of zeros, which stands in the file beside one of the source's."""
    return Recipe(name=name, sources=(beside,), fill=0.0)
