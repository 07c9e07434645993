"""Two processes, with DDP, with FSDP2 and on two nodes, learn as one with the same global batch, and refuse as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.subjects import QUICK, save_subject

pytestmark = pytest.mark.slow

STEPS = 4
FSDP = {
    "fsdp": True,
    "fsdp_config": {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "FULL_STATE_DICT",
    },
}


def _train(subject: tuple[Path, Path], name: str, processes: int, nodes: int = 1, **trainer: Any) -> dict[str, Any]:
    """Train in processes of a launcher on each of the nodes, all on this machine, and return the report."""
    folder = subject[0].parent
    world = processes * nodes
    settings = QUICK | {"eval_steps": STEPS, "save_steps": STEPS, "per_device_train_batch_size": 4 // world}
    content = {"data": [str(subject[1])], "context": 32, "steps": STEPS, "held_out_tokens": 200}
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(content | {"trainer": settings | trainer}))
    words = ["-m", "mha2gqa", "uptrain", str(subject[0]), "-o", str(folder / name), "--config", str(recipe), "--json"]
    launched = [
        subprocess.Popen(
            [sys.executable, *(launcher if world > 1 else []), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        )
        for launcher in _launchers(processes, nodes)
    ]
    ends = [process.communicate(timeout=600) for process in launched]
    for process, (_, errors) in zip(launched, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    report: dict[str, Any] = json.loads(ends[0][0].splitlines()[-1])
    assert report["processes"] == world
    return report


def _launchers(processes: int, nodes: int) -> list[list[str]]:
    """Return the words of torchrun for each node, the first of which meets the others."""
    words = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [[*words, "--master-port=0", "--standalone"]]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words += [f"--nnodes={nodes}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [[*words, f"--node-rank={node}"] for node in range(nodes)]


def test_a_refusal_of_two_processes_is_one_message(tmp_path: Path) -> None:
    words = ["-m", "mha2gqa", "uptrain", str(tmp_path / "absent"), "--steps", "2"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    done = subprocess.run([sys.executable, *launcher, *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.count("No such directory") == 1


def _series(report: dict[str, Any], name: str) -> list[float]:
    return [entry[name] for entry in report["history"] if name in entry]


def test_two_processes_learn_as_one_does(tmp_path: Path) -> None:
    subject = save_subject(tmp_path)
    one = _train(subject, "one", 1)
    for name, processes, nodes, trainer in (("ddp", 2, 1, {}), ("fsdp2", 2, 1, FSDP), ("nodes", 1, 2, {})):
        two = _train(subject, name, processes, nodes, **trainer)
        assert two["length"] == one["length"]
        for series in ("loss", "eval_loss", "eval_original_loss"):
            assert _series(two, series) == pytest.approx(_series(one, series), rel=1e-4), (name, series)
        assert two["losses"]["after"] == pytest.approx(one["losses"]["after"], rel=1e-4)
        assert len(_series(two, "loss")) == STEPS
