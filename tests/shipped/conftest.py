"""Every family here goes into the class that ships, also where one of transformers' own would be taken first."""

import pytest

from mha2gqa.hosts import choice
from mha2gqa.shipped import SOURCES


@pytest.fixture(autouse=True)
def only_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SOURCES:
        monkeypatch.setitem(choice.HOSTS, name, ("shipped",))
