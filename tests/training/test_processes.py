"""Two processes, with DDP and with FSDP2, learn as one process with the same global batch does, and refuse as one."""

import json
import os
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


def _train(subject: tuple[Path, Path], name: str, processes: int, **trainer: Any) -> dict[str, Any]:
    """Train in processes of a launcher, and return the report."""
    folder = subject[0].parent
    settings = QUICK | {"eval_steps": STEPS, "save_steps": STEPS, "per_device_train_batch_size": 4 // processes}
    content = {"data": [str(subject[1])], "context": 32, "steps": STEPS, "held_out_tokens": 200}
    recipe = folder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(content | {"trainer": settings | trainer}))
    words = ["-m", "mha2gqa", "uptrain", str(subject[0]), "-o", str(folder / name), "--config", str(recipe), "--json"]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0", "--standalone"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["processes"] == processes
    return report


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
    for name, trainer in (("ddp", {}), ("fsdp2", FSDP)):
        two = _train(subject, name, 2, **trainer)
        assert two["length"] == one["length"]
        for series in ("loss", "eval_loss", "eval_original_loss"):
            assert _series(two, series) == pytest.approx(_series(one, series), rel=1e-4), (name, series)
        assert two["losses"]["after"] == pytest.approx(one["losses"]["after"], rel=1e-4)
        assert len(_series(two, "loss")) == STEPS
