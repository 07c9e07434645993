"""Classes of transformers alone are the hosts here; what ships is tested in tests/shipped."""

import pytest

from mha2gqa.hosts import table


@pytest.fixture(autouse=True)
def only_native(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hosts in table.NATIVE.items():
        monkeypatch.setitem(table.HOSTS, name, hosts)  # type: ignore[arg-type]
