"""Hosts of each model type whose own class knows only MHA, in the order in which they are tried. NEW HOST = ONE ROW."""

from collections.abc import Mapping

from mha2gqa.hosts.host import Host
from mha2gqa.hosts.phi import GPTJ

HOSTS: Mapping[str, tuple[Host, ...]] = {
    "gptj": (GPTJ,),
}
"""Model type of the source -> its hosts."""
