"""Results on a Hub on loopback: what is pushed is what lies here, and what cannot be pushed stays whole."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import snapshot_download

from tests.conftest import Run
from tests.hub_server import HubServer
from tests.verbs.uptrain.subjects import save_subject, trained

Cli = Callable[..., Run]
ACCOUNT = "hf_loopback"
Tree = Callable[[Path], dict[str, bytes | None]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with HubServer() as server:
        server.token = ACCOUNT
        server.connect(monkeypatch, tmp_path_factory.mktemp("home"))
        yield server


def pulled(hub_id: str, tree: Tree) -> dict[str, bytes | None]:
    found = tree(Path(snapshot_download(hub_id)))
    return {name: data for name, data in found.items() if data is not None}


def files(directory: Path, tree: Tree) -> dict[str, bytes | None]:
    return {name: data for name, data in tree(directory).items() if data is not None}


def test_what_is_pushed_is_pulled_byte_for_byte(
    hub: HubServer, tiny: Callable[..., Path], cli: Cli, tree: Tree, tmp_path: Path
) -> None:
    hub.add("org/source", tiny())
    run = cli("convert", "org/source", "-g", 2, "-o", "made", "--push-to-hub", "org/made", "--private")
    assert run.code == 0, run.err
    assert f"{hub.url}/org/made" in run.out
    assert pulled("org/made", tree) == files(tmp_path / "made", tree)
    assert hub.repositories["org/made"].private
    header = yaml.safe_load((tmp_path / "made" / "README.md").read_text().split("---\n")[1])
    assert header["base_model"] == "org/source"
    assert "mha2gqa" in header["tags"]


def test_what_was_trained_is_pushed(hub: HubServer, tree: Tree, tmp_path: Path) -> None:
    report = trained(save_subject(tmp_path), push_to_hub="org/trained")
    assert report.pushed == f"{hub.url}/org/trained"
    assert pulled("org/trained", tree) == files(report.output, tree)
    assert "org/trained" not in (report.output / "uptrain.yaml").read_text()


def test_a_later_result_takes_the_place_of_its_weights_and_leaves_the_rest(
    hub: HubServer, tiny: Callable[..., Path], cli: Cli, tree: Tree, tmp_path: Path
) -> None:
    (old := tmp_path / "old").mkdir()
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "picture.png"):
        (old / name).write_text("old")
    hub.add("org/made", old)
    assert cli("convert", tiny(), "-g", 2, "-o", "made", "--push-to-hub", "org/made").code == 0
    assert pulled("org/made", tree) == files(tmp_path / "made", tree) | {"picture.png": b"old"}
    assert not hub.repositories["org/made"].private


def test_an_upload_that_fails_leaves_the_result_and_goes_on(
    hub: HubServer, tiny: Callable[..., Path], cli: Cli, tree: Tree, tmp_path: Path
) -> None:
    source = tiny(max_shard_size="100kB")
    assert cli("convert", source, "-g", 2, "-o", "plain").code == 0
    *_, last = sorted((tmp_path / "plain").glob("*.safetensors"))
    hub.refuses = {last.read_bytes()}
    run = cli("convert", source, "-g", 2, "-o", "made", "--push-to-hub", "org/made", "--private")
    assert (run.code, run.err.count("\n")) == (1, 1)
    assert "org/made did not take made whole" in run.err
    assert files(tmp_path / "made", tree).keys() == files(tmp_path / "plain", tree).keys()
    assert cli("verify", "made", "--level", "file").code == 0
    sent, hub.refuses = list(hub.uploads), set()
    assert sent
    _, command, _ = run.err.split("`")
    run = cli(*shlex.split(command)[1:])
    assert run.code == 0, run.err
    assert len(hub.uploads) == len({*hub.uploads}) == len(list((tmp_path / "made").glob("*.safetensors")))
    assert pulled("org/made", tree) == files(tmp_path / "made", tree)
    assert hub.repositories["org/made"].private


@pytest.mark.parametrize(
    ("token", "arguments", "code", "says"),
    [
        (ACCOUNT, ("--push-to-hub", "made"), 2, "'made' does not say whose repository it is"),
        (ACCOUNT, ("--push-to-hub", "org/ma de"), 2, "Repo id must"),
        (ACCOUNT, ("--private",), 2, "--private goes with --push-to-hub"),
        (None, ("--push-to-hub", "org/made"), 1, "There is no account to upload org/made with"),
        ("hf_stale", ("--push-to-hub", "org/made"), 1, "hf auth login"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_the_first_byte(
    hub: HubServer,
    tiny: Callable[..., Path],
    cli: Cli,
    tree: Tree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    arguments: tuple[Any, ...],
    code: int,
    says: str,
) -> None:
    source = tiny()
    before = tree(tmp_path)
    monkeypatch.setenv("HF_TOKEN", token or "")
    run = cli("convert", source, "-g", 2, "-o", "made", *arguments)
    assert run.code == code
    assert says in " ".join(run.err.replace("│", "").split())
    assert tree(tmp_path) == before
    assert not hub.repositories


def test_what_is_to_be_private_is_not_sent_where_everybody_sees_it(
    hub: HubServer, tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    (public := tmp_path / "public").mkdir()
    hub.add("org/made", public)
    assert cli("convert", tiny(), "-g", 2, "-o", "made").code == 0
    run = cli("export", "made", "--push-to-hub", "org/made", "--private")
    assert run.code == 1
    assert "org/made is there already, and everybody can see it" in run.err
    assert not hub.uploads


def test_a_place_that_is_somebody_elses_and_a_folder_that_is_not_ours(
    hub: HubServer, tiny: Callable[..., Path], cli: Cli
) -> None:
    source = tiny()
    run = cli("export", source, "--push-to-hub", "org/made")
    assert (run.code, "There is no mha2gqa.json" in run.err) == (1, True)
    run = cli("convert", source, "-g", 2, "-o", "made", "--push-to-hub", "others/made")
    assert run.code == 1
    assert "a repository of your own" in run.err
    assert not hub.repositories
