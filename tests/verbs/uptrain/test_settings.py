"""Settings of the trainer: read as what their fields take, and refused in one message before any text is read.

TYPED     what is given, and what it becomes
UNFIT     what fits no field
REFUSED   what TrainingArguments take and the Trainer does not: by itself, or for want of a package or a launcher
"""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mha2gqa.errors import TrainingError
from mha2gqa.verbs.uptrain import plan
from mha2gqa.verbs.uptrain.rehearsal import rehearsed
from mha2gqa.verbs.uptrain.settings import typed
from tests.verbs.uptrain.subjects import QUICK, save_subject

TYPED = [
    ("learning_rate: 3e-5", 3e-5),
    ("learning_rate: '0.001'", 0.001),
    ("weight_decay: 1E-2", 0.01),
    ("max_grad_norm: 1", 1),
    ("per_device_train_batch_size: 4.0", 4),
    ("gradient_accumulation_steps: '8'", 8),
    ("gradient_accumulation_steps: 1e1", 10),
    ("save_steps: 0.5", 0.5),
    ("eval_steps: null", None),
    ("eval_strategy: no", "no"),
    ("save_strategy: off", "no"),
    ("logging_strategy: steps", "steps"),
    ("lr_scheduler_type: linear", "linear"),
    ("report_to: no", "none"),
    ("report_to: [tensorboard, wandb]", ["tensorboard", "wandb"]),
    ("run_name: 7", "7"),
    ("run_name: 2024-01-02", "2024-01-02"),
    ("fsdp: off", False),
    ("fsdp: full_shard auto_wrap", "full_shard auto_wrap"),
    ("trackio_space_id: off", None),
    ("bf16: 'no'", False),
    ("bf16: 'True'", True),
    ("gradient_checkpointing: 1", True),
    ("include_num_input_tokens_seen: yes", True),
    ("include_num_input_tokens_seen: all", "all"),
    ("lr_scheduler_kwargs: {min_lr: 1e-5, num_cycles: 2, kind: e3}", {"min_lr": 1e-5, "num_cycles": 2, "kind": "e3"}),
    ("gradient_checkpointing_kwargs: {use_reentrant: no}", {"use_reentrant": False}),
    ("neftune_noise_alpha: 5", 5),
    ("dataloader_prefetch_factor: '2'", 2),
]
UNFIT = [
    ("learning_rate: fast", "a number"),
    ("learning_rate: no", "a number"),
    ("learning_rate: [1]", "a number"),
    ("learning_rate: .nan", "a number"),
    ("learning_rate: inf", "a number"),
    ("learning_rate: null", "a number"),
    ("learning_rate: -1e-4", "0 or more"),
    ("per_device_train_batch_size: 0", "1 or more"),
    ("per_device_eval_batch_size: -2", "1 or more"),
    ("gradient_accumulation_steps: 0", "1 or more"),
    ("per_device_train_batch_size: many", "a whole number"),
    ("per_device_train_batch_size: 1.5", "a whole number"),
    ("per_device_train_batch_size: true", "a whole number"),
    ("dataloader_num_workers: -1", "0 or more"),
    ("save_steps: 0", "1 or more"),
    ("bf16: maybe", "true or false"),
    ("bf16: 2", "true or false"),
    ("eval_strategy: on", "one of no, steps, epoch"),
    ("optim: adamw", "adamw_torch"),
    ("lr_scheduler_kwargs: [1]", "a mapping"),
    ("run_name: {a: b}", "a word"),
    ("run_name: yes", "a word"),
]
REFUSED = [
    ({"optim": "galore_adamw"}, "galore_torch"),
    ({"optim": "lomo"}, "lomo_optim"),
    ({"optim": "adamw_8bit", "weight_decay": 0.1}, "bitsandbytes"),
    ({"report_to": "comet_ml"}, "comet_ml"),
    ({"report_to": "trackio", "run_name": "x"}, "trackio"),
    ({"report_to": "mlflow"}, "mlflow"),
    ({"report_to": "everything"}, "everything is not supported"),
    ({"use_liger_kernel": True}, "liger"),
    ({"deepspeed": "zero3.json"}, "deepspeed"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
    ({"lr_scheduler_type": "cosine_warmup_with_min_lr"}, "min_lr"),
    ({"lr_scheduler_kwargs": {"speed": 1}}, "speed"),
    ({"fsdp": "full_shard"}, "distributed"),
    ({"fsdp": "shard_all"}, "shard_all"),
    ({"accelerator_config": {"fast": True}}, "fast"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers"),
    ({"adam_beta1": 2.0}, "beta"),
    ({"log_level": "loud"}, "loud"),
]


def ids(row: Any) -> str:
    return row if isinstance(row, str) else ",".join(row) if isinstance(row, dict) else ""


@pytest.mark.parametrize(("line", "value"), TYPED, ids=ids)
def test_values_take_the_type_of_their_field(line: str, value: Any) -> None:
    given = yaml.safe_load(line)
    found = typed(given)
    assert found == {next(iter(given)): value}
    assert [type(one) for one in found.values()] == [type(value)]
    assert typed(found) == found


@pytest.mark.parametrize(("line", "expected"), UNFIT, ids=ids)
def test_values_that_fit_no_field(line: str, expected: str) -> None:
    with pytest.raises(TrainingError) as refusal:
        typed(yaml.safe_load(line))
    assert line.partition(":")[0] in str(refusal.value)
    assert expected in str(refusal.value)


@pytest.fixture(scope="module")
def _subject(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_subject(tmp_path_factory.mktemp("settings"))


@pytest.fixture
def subject(_subject: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The conversion and the text, in a directory of their own; nothing here writes to them."""
    (tmp_path / "text.jsonl").symlink_to(_subject[1])
    return _subject[0], tmp_path / "text.jsonl"


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text is prepared and no model loaded."""

    def load(job: plan.Job) -> None:
        raise AssertionError("the settings were not refused before models and text are read")

    monkeypatch.setattr(plan.Job, "load", load)


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize(("settings", "says"), REFUSED, ids=ids)
def test_what_the_trainer_refuses(
    subject: tuple[Path, Path],
    refuse: Callable[..., None],
    settings: dict[str, Any],
    says: str,
) -> None:
    recipe = subject[1].parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"trainer": {"use_cpu": True} | settings}))
    name = next(iter(settings))
    words = ("The Trainer refuses its settings", name, says, "eave")
    asked = ("uptrain", subject[0], "--data", subject[1], "--steps", 2, "--context", 32, "--config", recipe)
    refuse(*asked, says=words)
    if says != "distributed":  # a plan needs no launcher
        refuse(*asked, "--dry-run", says=words)


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("per_device_train_batch_size=0", "1 or more"),
        ("learning_rate=fast", "a number"),
        ("gradient_accumulation_steps=two", "a whole number"),
        ("optim=sgdd", "one of"),
    ],
)
def test_pairs_of_the_command_line(
    subject: tuple[Path, Path], refuse: Callable[..., None], pair: str, says: str
) -> None:
    words = (pair.partition("=")[0], says)
    refuse("uptrain", subject[0], "--data", subject[1], "--steps", 2, "--trainer", pair, says=words)


def test_pairs_that_yaml_reads_otherwise(subject: tuple[Path, Path], cli: Callable[..., Any]) -> None:
    pairs = {"save_strategy": "no", "learning_rate": "1e-4", "adam_epsilon": "1e-8", "report_to": "no"}
    options = [word for name, value in pairs.items() for word in ("--trainer", f"{name}={value}")]
    answer = cli("uptrain", subject[0], "--data", subject[1], "--steps", 1, "--context", 32, "--dry-run", *options)
    assert answer.code == 0, answer.err


def test_gradient_checkpointing_where_the_class_has_none(
    subject: tuple[Path, Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    answer = cli(
        *("uptrain", subject[0], "--data", subject[1], "--steps", 1, "--context", 32, "--dry-run"),
        *("--trainer", "gradient_checkpointing=true"),
    )
    assert (answer.code, "is not supported by LlamaForCausalLM" in answer.err) == (1, True), answer.err


def test_a_rehearsal_changes_nothing(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    def build(given: Any) -> TrainingArguments:
        return TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", max_steps=1, **given)

    def states() -> tuple[Any, ...]:
        return torch.random.get_rng_state().tolist(), random.getstate(), sorted(os.environ)

    before = states()
    assert rehearsed(build, QUICK).learning_rate == QUICK["learning_rate"]
    assert states() == before
    with pytest.raises(TrainingError, match="lr_scheduler_type=warmup_stable_decay"):
        rehearsed(build, QUICK | {"lr_scheduler_type": "warmup_stable_decay"})
    assert states() == before
    assert not list(tmp_path.iterdir())
