"""Every family here goes into the class that ships, also where one of transformers' own would be taken first."""

import pytest

from mha2gqa.hosts import table
from mha2gqa.hosts.shipped import SHIPPED


@pytest.fixture(autouse=True)
def only_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, host in SHIPPED.items():
        monkeypatch.setitem(table.HOSTS, name, (host,))  # type: ignore[arg-type]
