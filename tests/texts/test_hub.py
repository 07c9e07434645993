"""Data sets of a Hub on loopback: the right split, the named configuration, and refusals that say what is there."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mha2gqa.errors import TextError
from mha2gqa.texts.documents import read_documents
from mha2gqa.texts.tables import Purpose
from tests.hub_server import HubServer

CONFIGS = """---
configs:
- config_name: plain
  data_files: [{split: train, path: plain.jsonl}]
- config_name: other
  data_files: [{split: train, path: other.jsonl}]
---
"""

Read = Callable[..., list[str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", str(tmp_path / "modules"))
        yield server


@pytest.fixture
def repository(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, **files: str) -> Path:
        directory = tmp_path / "hub-sources" / name
        directory.mkdir(parents=True)
        for stem, text in files.items():
            (directory / f"{stem}.jsonl").write_text(json.dumps({"text": text}) + "\n")
        return directory

    return make


def read(name: str, purpose: Purpose = "evaluation") -> list[str]:
    return list(read_documents([name], purpose=purpose))


def test_the_split_is_that_of_the_purpose_or_the_named_one(hub: HubServer, repository: Callable[..., Path]) -> None:
    hub.add("org/data", repository("splits", train="for training", test="for tests", validation="between"))
    assert read("org/data") == ["for tests"]
    assert read("org/data", "calibration") == ["for training"]
    assert read("org/data@main::validation") == ["between"]
    with pytest.raises(TextError, match=r"no split 'dev'\. Expected one of "):
        read("org/data::dev")


def test_a_configuration_is_named_or_the_refusal_lists_them(hub: HubServer, repository: Callable[..., Path]) -> None:
    directory = repository("configs", plain="of plain", other="of other")
    (directory / "README.md").write_text(CONFIGS)
    hub.add("org/several", directory)
    assert read("org/several:other") == ["of other"]
    assert read("org/several:plain:train") == ["of plain"]
    with pytest.raises(TextError, match=r"cannot be opened.*plain.*other"):
        read("org/several")


def test_a_revision_is_the_one_that_was_named(hub: HubServer, repository: Callable[..., Path]) -> None:
    commit = hub.add("org/data", repository("old", train="old"), revision="v1")
    hub.add("org/data", repository("new", train="new"))
    assert read("org/data@v1") == read(f"org/data@{commit}") == ["old"]
    assert read("org/data") == ["new"]


def test_data_sets_that_cannot_be_read_are_refused(hub: HubServer, repository: Callable[..., Path]) -> None:
    hub.add("org/closed", repository("closed", train="secret"), gated=True)
    with pytest.raises(TextError, match=r"org/closed cannot be opened.*gated"):
        read("org/closed")
    with pytest.raises(TextError, match="org/unknown cannot be opened"):
        read("org/unknown")
