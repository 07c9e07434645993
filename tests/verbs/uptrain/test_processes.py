"""Two processes, with DDP, with FSDP2 and on two nodes, learn as one with the same global batch, and refuse as one.

Each of the two tasks, running text and pairs, is run in two of these ways; losses agree to 1e-4, and weights to a
thousandth of what training moves them. `torchrun` starts the first of these ways and the refusal; processes that are
told what `torchrun` tells them are the others.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mha2gqa.verbs.uptrain.workspace import newest_checkpoint, workspace_of
from tests.verbs.uptrain.forked import Forked, end_all, world
from tests.verbs.uptrain.pair_subjects import save_pair_subject
from tests.verbs.uptrain.subjects import QUICK, save_latent_subject, save_subject

pytestmark = pytest.mark.slow

STEPS = 4
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
_TORCHRUN += ["-m", "mha2gqa"]
RUNNING_TEXT, PAIRS = {"context": 32}, {"context": 24, "target_context": 12, "train": "all"}


def _fsdp(layer: str) -> dict[str, Any]:
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": [layer],
            "state_dict_type": "FULL_STATE_DICT",
        },
    }


def _train(
    subject: tuple[Path, Path], name: str, processes: int, nodes: int = 1, *, read: dict[str, Any], **trainer: Any
) -> dict[str, Any]:
    """Train in processes on each of the nodes, all on this machine, and return the report."""
    words, size = _words(subject, name, processes * nodes, read, trainer), processes * nodes
    output = subject[0].parent / name
    if name == "ddp":
        launched = subprocess.run([*_TORCHRUN, *words], capture_output=True, text=True, timeout=600)
        assert launched.returncode == 0, launched.stderr[-3000:]
        lines = launched.stdout.splitlines()
    elif size > 1:
        lines = end_all(world(words, output, _port(), processes, nodes))
    else:
        lines = Forked(words, output.with_suffix(".out")).end()
    report: dict[str, Any] = json.loads(lines[-1])
    assert report["processes"] == size
    return report


def _words(
    subject: tuple[Path, Path], name: str, world: int, read: dict[str, Any], trainer: dict[str, Any]
) -> list[str]:
    """Return the command that trains in as many processes, with a recipe of its own."""
    folder = subject[0].parent
    settings = QUICK | {"eval_steps": STEPS, "save_steps": STEPS, "per_device_train_batch_size": 4 // world}
    content = {"data": [str(subject[1])], "steps": STEPS, "held_out_tokens": 200, "keep": "last"} | read
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(content | {"trainer": settings | trainer}))
    return ["uptrain", str(subject[0]), "-o", str(folder / name), "--config", str(recipe), "--json"]


def _port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_refusal_of_two_processes_is_one_message(tmp_path: Path) -> None:
    words = ["uptrain", str(tmp_path / "absent"), "--steps", "2"]
    done = subprocess.run([*_TORCHRUN, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.count("No such directory") == 1


def _series(report: dict[str, Any], name: str) -> list[float]:
    return [entry[name] for entry in report["history"] if name in entry]


def _check_as_one(subject: tuple[Path, Path], layer: str, ways: tuple[str, ...], read: dict[str, Any]) -> None:
    one = _train(subject, "one", 1, read=read)
    for name in ways:
        processes, nodes = (1, 2) if name == "nodes" else (2, 1)
        two = _train(subject, name, processes, nodes, read=read, **(_fsdp(layer) if name == "fsdp2" else {}))
        assert two["length"] == one["length"]
        for series in ("loss", "eval_loss", "eval_original_loss"):
            assert _series(two, series) == pytest.approx(_series(one, series), rel=1e-4), (name, series)
        assert two["losses"]["after"] == pytest.approx(one["losses"]["after"], rel=1e-4)
        assert len(_series(two, "loss")) == STEPS


def test_two_processes_learn_as_one_does(tmp_path: Path) -> None:
    _check_as_one(save_subject(tmp_path), "LlamaDecoderLayer", ("ddp", "fsdp2"), RUNNING_TEXT)


def test_two_processes_learn_a_latent_as_one_does(tmp_path: Path) -> None:
    _check_as_one(save_latent_subject(tmp_path), "DeepseekV3DecoderLayer", ("fsdp2",), RUNNING_TEXT)


def test_two_processes_learn_pairs_as_one_does(
    tmp_path: Path, tensors: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    """Batches of the processes are padded to lengths of their own, and hold as many tokens as they happen to."""
    ways = ("fsdp2", "nodes")
    _check_as_one(save_pair_subject(tmp_path, dropout_rate=0.0), "T5Block", ways, PAIRS)
    one, start = tensors(tmp_path / "one"), tensors(tmp_path / "converted")
    for name in ways:
        two = tensors(tmp_path / name)
        assert two.keys() == one.keys()
        moved = sum((one[key] - start[key]).square().sum().item() for key in one)
        apart = sum((two[key] - one[key]).square().sum().item() for key in one)
        assert apart < 1e-6 * moved, name


def test_two_processes_that_were_killed_go_on_as_if_they_had_not_been(
    tmp_path: Path, tensors: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    """With dropout, so that the random numbers of both have to go on as well."""
    subject, every = save_pair_subject(tmp_path, dropout_rate=0.2), {"save_steps": 1}
    whole = _train(subject, "whole", 2, read=PAIRS, **every)
    words = _words(subject, "killed", 2, PAIRS, every)
    processes = world(words, tmp_path / "killed", _port(), 2)
    processes[0].wait_for(f'"step": {STEPS - 1}')
    for process in processes:
        process.kill()
    begun = newest_checkpoint(workspace_of(tmp_path / "killed"))
    assert begun is not None
    assert not (tmp_path / "killed").exists()
    lines = end_all(world([*words, "--resume"], tmp_path / "resumed", _port(), 2))
    rest = [json.loads(line)["step"] for line in lines if json.loads(line).get("kind") == "training"]
    assert rest == list(range(int(begun.name.partition("-")[2]) + 1, STEPS + 1))
    report = json.loads(lines[-1])
    assert _series(report, "loss") == _series(whole, "loss")
    assert report["losses"] == whole["losses"]
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)
