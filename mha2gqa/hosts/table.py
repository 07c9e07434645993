"""Hosts of each model type whose own class knows only MHA, in the order in which they are tried. NEW HOST = ONE ROW."""

from collections.abc import Mapping

from mha2gqa.hosts.host import Host
from mha2gqa.hosts.phi import GPTJ
from mha2gqa.hosts.shipped import SHIPPED

NATIVE: Mapping[str, tuple[Host, ...]] = {
    "gptj": (GPTJ,),
}
"""Model type of the source -> its hosts among transformers' own classes."""

HOSTS: Mapping[str, tuple[Host, ...]] = NATIVE | {name: (*NATIVE.get(name, ()), host) for name, host in SHIPPED.items()}
"""Model type of the source -> its hosts, those that ship last."""
