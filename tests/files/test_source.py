"""Finding a model: directories, the reference checkpoint, and a Hub that `tests/hub_server.py` plays."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import mha2gqa.reference
from mha2gqa.errors import CheckpointError, SourceError
from mha2gqa.files import hub
from mha2gqa.files.source import Source, find_source, remote_weight_shapes
from tests.hub_server import HubServer

K_PROJ, V_PROJ = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
# Larger than the 100 kB that huggingface_hub asks for when it reads a header.
TENSORS = {K_PROJ: np.ones((64, 2048), np.float32), V_PROJ: np.ones((64, 1024), np.float16)}
SHAPES = {K_PROJ: ("F32", (64, 2048)), V_PROJ: ("F16", (64, 1024))}
SHARDS = {K_PROJ: "model-00001-of-00002.safetensors", V_PROJ: "model-00002-of-00002.safetensors"}
COMPANIONS = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.txt", "qwen.tiktoken"),
    *("modeling_own.py", "chat_template.jinja", "additional_chat_templates/tools.jinja", "README.md", "LICENSE"),
}
LEFT_ALONE = {
    *("tf_model.h5", "flax_model.msgpack", "model.onnx", "model.gguf", "optimizer.pt", "training_args.bin"),
    *("original/consolidated.00.pth", "original/params.json", "onnx/config.json", "consolidated.safetensors"),
}


def fill(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps({"name": name}))
    return directory


def sharded(directory: Path) -> Path:
    fill(directory, "config.json")
    for name, shard in SHARDS.items():
        save_file({name: TENSORS[name]}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": SHARDS}))
    return directory


def files(source: Source) -> set[str]:
    return {path.relative_to(source.directory).as_posix() for path in source.directory.rglob("*") if path.is_file()}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with everything that authors put beside a checkpoint."""
    directory = fill(tmp_path / "repo", *COMPANIONS, *LEFT_ALONE, "pytorch_model.bin")
    save_file(TENSORS, directory / "model.safetensors")
    return directory


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "home")
        yield server


def refusal(model: str | None, *, small: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        find_source(model, small=small)
    return str(caught.value)


# Local


def test_reference_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(mha2gqa.reference, "__file__", str(tmp_path / "__init__.py"))
    message = refusal(None)
    assert str(tmp_path / "checkpoint") in message
    assert "Reinstall" in message
    directory = fill(tmp_path / "checkpoint", "config.json")
    assert find_source(None) == Source(directory=directory, name="mha2gqa-reference", hub_id=None, revision=None)


@pytest.mark.parametrize("model", ["runs/llama", "runs/llama/", "./runs/llama", "runs/../runs/llama", "~/runs/llama"])
def test_local_directory(monkeypatch, tmp_path, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = fill(tmp_path / "runs/llama", "config.json")
    source = find_source(model)
    assert (source.directory.samefile(directory), source.name, source.hub_id) == (True, "llama", None)
    assert remote_weight_shapes(source) is None


def test_local_directory_is_named_even_as_a_dot(monkeypatch, tmp_path):
    monkeypatch.chdir(fill(tmp_path / "llama/inner", "config.json"))
    assert [find_source(model).name for model in (".", "..")] == ["inner", "llama"]


def test_a_file_is_refused_with_its_directory(tmp_path):
    file = fill(tmp_path, "model.safetensors") / "model.safetensors"
    message = refusal(str(file))
    assert f"{str(file)!r} is a file" in message
    assert f"Try {str(tmp_path)!r}" in message


@pytest.mark.parametrize(
    "model",
    ["", "gpt2", "./llama", "../llama", "/no/such", "/no", "~/no-such", "runs/of/llama", "runs\\llama", "org/name@"],
)
def test_what_is_no_directory_and_no_hub_id(server, model):
    message = refusal(model)
    assert f"No such directory: {model!r}" in message
    assert "org/name@revision" in message
    assert not server.requests


def test_a_path_that_cannot_be_opened():
    message = refusal(300 * "x")
    assert "Cannot open 'xxx" in message
    assert "Check the path and its permissions" in message


# Hub


def test_download(server, repo):
    commit = server.add("org/llama", repo)
    source = find_source("org/llama")
    assert (source.name, source.hub_id, source.revision) == ("llama", "org/llama", commit)
    assert files(source) == server.fetched() == COMPANIONS | {"model.safetensors"}
    assert all((source.directory / name).read_bytes() == (repo / name).read_bytes() for name in files(source))


def test_second_call_fetches_nothing(server, repo):
    server.add("org/llama", repo)
    first = find_source("org/llama")
    server.requests.clear()
    assert find_source("org/llama") == first
    assert not server.fetched()


def test_pickles_only_without_safetensors(server, tmp_path):
    shards = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
    wanted = {"config.json", "pytorch_model.bin.index.json", *shards}
    server.add("org/old", fill(tmp_path / "repo", *wanted, *LEFT_ALONE))
    assert files(find_source("org/old")) == wanted


@pytest.mark.parametrize("tag", ["v2", "refs/pr/1"])
def test_revision(server, repo, tmp_path, tag):
    main = server.add("org/llama", repo)
    (changed := tmp_path / "changed").mkdir()
    shutil.copytree(repo, changed, dirs_exist_ok=True)
    (changed / "config.json").write_text('{"changed": true}')
    commit = server.add("org/llama", changed, revision=tag)
    assert commit != main
    for revision in (tag, commit):
        source = find_source(f"org/llama@{revision}")
        assert (source.name, source.hub_id, source.revision) == ("llama", "org/llama", commit)
        assert json.loads((source.directory / "config.json").read_text()) == {"changed": True}
    assert find_source("org/llama").revision == main


def test_a_local_directory_wins_over_a_repository(server, repo, monkeypatch, tmp_path):
    server.add("org/llama", repo)
    fill(tmp_path / "org/llama", "config.json")
    monkeypatch.chdir(tmp_path)
    assert find_source("org/llama").hub_id is None
    assert not server.requests


def test_small_fetches_no_weights(server, tmp_path):
    server.add("org/llama", fill(sharded(tmp_path / "repo"), "generation_config.json", "tokenizer.json", "README.md"))
    source = find_source("org/llama", small=True)
    assert server.fetched() == {"config.json", "generation_config.json", "model.safetensors.index.json"}
    assert files(source) == server.fetched()


@pytest.mark.parametrize(("present", "lacks"), [((), "config.json"), (("config.json",), "*.safetensors")])
def test_repository_without_a_checkpoint(server, tmp_path, present, lacks):
    server.add("org/gguf", fill(tmp_path / "repo", "model.gguf", "README.md", *present))
    message = refusal("org/gguf")
    assert f"org/gguf has no {lacks}" in message
    assert "GGUF" in message
    assert "model.gguf" not in server.fetched()


# Weights that stay on the Hub


def test_remote_shapes_of_one_file(server, repo):
    server.add("org/llama", repo)
    source = find_source("org/llama", small=True)
    server.requests.clear()
    assert remote_weight_shapes(source) == SHAPES
    sent = sum(request.sent for request in server.requests)
    assert 0 < sent < (repo / "model.safetensors").stat().st_size / 2


def test_remote_shapes_of_shards(server, tmp_path):
    repo = sharded(tmp_path / "repo")
    server.add("org/llama", repo)
    assert remote_weight_shapes(find_source("org/llama", small=True)) == SHAPES
    for shard in SHARDS.values():
        sent = sum(request.sent for request in server.requests if request.file == shard)
        assert 0 < sent < (repo / shard).stat().st_size


def test_remote_shapes_without_safetensors(server, tmp_path):
    server.add("org/old", fill(tmp_path / "repo", "config.json", "pytorch_model.bin"))
    assert remote_weight_shapes(find_source("org/old", small=True)) is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("model.safetensors", b'\x08\0\0\0\0\0\0\0{"a": 1}'),
        ("model.safetensors", b"not a header"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "absent.safetensors"}}'),
        ("model.safetensors.index.json", b'{"weight_map": []}'),
        ("model.safetensors.index.json", b"{"),
    ],
)
def test_remote_headers_that_cannot_be_read(server, tmp_path, file, content):
    repo = fill(tmp_path / "repo", "config.json")
    (repo / file).write_bytes(content)
    server.add("org/llama", repo)
    source = find_source("org/llama", small=True)
    with pytest.raises(CheckpointError, match="safetensors headers of org/llama cannot be read"):
        remote_weight_shapes(source)


# Without the Hub


def test_offline_works_from_the_cache(server, repo, monkeypatch, tmp_path):
    server.add("org/llama", repo)
    online = find_source("org/llama")
    server.requests.clear()
    server.connect(monkeypatch, tmp_path / "home", offline=True)
    assert find_source("org/llama") == find_source(f"org/llama@{online.revision}") == online
    assert find_source("org/llama", small=True) == online
    assert not server.requests


def test_cache_serves_where_the_hub_is_down_or_gone(server, repo, monkeypatch, tmp_path):
    server.add("org/llama", repo)
    online = find_source("org/llama")
    server.down = True
    assert find_source("org/llama") == online
    server.connect(monkeypatch, tmp_path / "home", url=closed_port())
    assert find_source("org/llama") == online


@pytest.mark.parametrize("cached", ["nothing", "no weights", "one shard"])
def test_offline_and_not_all_in_the_cache(server, monkeypatch, tmp_path, cached):
    server.add("org/llama", sharded(tmp_path / "repo"), revision="v2")
    if cached != "nothing":
        source = find_source("org/llama@v2", small=cached == "no weights")
        for shard in list(SHARDS.values())[1:]:
            (source.directory / shard).unlink(missing_ok=True)
    server.connect(monkeypatch, tmp_path / "home", offline=True)
    message = refusal("org/llama@v2")
    assert "org/llama is not in the cache, or not all of it" in message
    assert str(tmp_path / "home") in message
    assert "HF_HUB_OFFLINE" in message
    assert "`hf download org/llama --revision v2`" in message


def test_offline_has_no_remote_shapes(server, repo, monkeypatch, tmp_path):
    server.add("org/llama", repo)
    source = find_source("org/llama", small=True)
    server.connect(monkeypatch, tmp_path / "home", offline=True)
    with pytest.raises(SourceError, match="Unset HF_HUB_OFFLINE"):
        remote_weight_shapes(source)


def closed_port() -> str:
    """An address of which nobody answers: the port of a server that has ended."""
    with HubServer() as gone:
        return gone.url


@pytest.mark.parametrize("small", [True, False])
def test_no_network(server, monkeypatch, tmp_path, small):
    url = closed_port()
    server.connect(monkeypatch, tmp_path / "home", url=url)
    message = refusal("org/llama", small=small)
    assert f"org/llama cannot be downloaded from {url} (" in message
    assert "refused" in message
    assert "Check the network, the proxy and HF_ENDPOINT" in message
    with pytest.raises(SourceError, match="refused"):
        remote_weight_shapes(Source(directory=tmp_path, name="llama", hub_id="org/llama", revision=None))


def test_hub_is_down(server, repo):
    server.add("org/llama", repo)
    server.down = True
    message = refusal("org/llama")
    assert "503" in message
    assert "Check the network" in message


# Refusals of the Hub


def test_unknown_repository(server):
    message = refusal("org/lama")
    assert "'org/lama'" in message
    assert "private" in message
    assert "`hf auth login`" in message


@pytest.mark.parametrize("revision", ["v9", 40 * "a"])
def test_unknown_revision(server, repo, revision):
    server.add("org/llama", repo)
    message = refusal(f"org/llama@{revision}")
    assert f"org/llama has no revision {revision!r}" in message
    assert "a branch, a tag or a full commit hash" in message
    assert f"leave out @{revision}" in message


@pytest.mark.parametrize("small", [True, False])
def test_gated_repository(server, repo, small):
    server.add("org/llama", repo, gated=True)
    message = refusal("org/llama", small=small)
    assert "org/llama is gated" in message
    assert f"Ask for access at {server.url}/org/llama" in message
    assert "`hf auth login`" in message


@pytest.mark.parametrize("model", ["org/na--me", "org/name.git", "org/na me", "-org/name@v1", "org/.."])
def test_malformed_hub_id(server, monkeypatch, tmp_path, model):
    monkeypatch.chdir(tmp_path)
    message = refusal(model)
    assert f"{model.partition('@')[0]!r} is neither a directory nor a Hub id (" in message
    assert "org/name@revision" in message
    assert not server.requests


def test_cache_that_cannot_be_written(server, repo, tmp_path):
    server.add("org/llama", repo)
    fill(tmp_path, "home")  # a file where the cache has to be
    message = refusal("org/llama")
    assert f"org/llama cannot be stored in {tmp_path / 'home'}" in message
    assert "free space" in message


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "cannot be stored"),
        (ConnectionResetError(104, "Connection reset by peer"), "cannot be downloaded"),
        (RuntimeError("Data processing error"), "cannot be downloaded"),
    ],
)
def test_a_download_that_breaks_off(error, says):
    with pytest.raises(SourceError, match=says) as caught, hub._refusals("org/llama", None):
        raise error
    assert str(error) in str(caught.value)


# The environment, which huggingface_hub reads once


def test_environment_and_a_cheap_import(server, repo, tmp_path):
    server.add("org/llama", repo)
    script = (
        "import sys; from mha2gqa.files.source import find_source;"
        "print([name for name in ('torch', 'huggingface_hub', 'transformers') if name in sys.modules]);"
        "print(find_source('org/llama').directory)"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=server.environment(tmp_path / "child", offline=offline),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for offline in (False, True)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == "[]"
    assert Path(answers[0][1]).is_relative_to(tmp_path / "child/hub")
