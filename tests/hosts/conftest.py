"""Classes of transformers alone are the hosts here; what ships is tested in tests/shipped."""

import pytest

from mha2gqa.hosts import choice


@pytest.fixture(autouse=True)
def only_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hosts in choice.NATIVE.items():
        monkeypatch.setitem(choice.HOSTS, name, hosts)
