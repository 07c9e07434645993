"""A run that was killed goes on as if it had not been: the same losses, bit for bit, and the same files."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mha2gqa.errors import TrainingError
from mha2gqa.verbs.uptrain import train as training_run
from mha2gqa.verbs.uptrain.workspace import newest_checkpoint, workspace_of
from tests.verbs.uptrain.forked import Forked
from tests.verbs.uptrain.pair_subjects import save_pair_subject
from tests.verbs.uptrain.subjects import QUICK, save_latent_subject, save_subject, trained

STEPS = 9


@pytest.fixture
def subject(tmp_path: Path) -> tuple[Path, Path]:
    return save_subject(tmp_path)


def _recipe(subject: tuple[Path, Path]) -> Path:
    """A recipe of nine steps, saved at every second."""
    content = {"data": [str(subject[1])], "context": 24, "steps": STEPS, "held_out_tokens": 200, "keep": "last"}
    content["trainer"] = QUICK
    path = subject[0].parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _start(subject: tuple[Path, Path], output: Path, *more: str) -> Forked:
    words = ["uptrain", str(subject[0]), "-o", str(output), "--config", str(_recipe(subject)), "--json", *more]
    return Forked(words, output.with_name(f"{output.name}{'-again' * bool(more)}.out"))


def _losses(lines: Iterable[str]) -> dict[int, float]:
    events = [json.loads(line) for line in lines]
    return {event["step"]: event["loss"] for event in events if event.get("kind") == "training"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "save",
    [save_subject, save_latent_subject, partial(save_pair_subject, dropout_rate=0.2)],
    ids=["text", "latent", "pairs"],
)
def test_a_killed_run_goes_on_bit_for_bit(
    save: Callable[[Path], tuple[Path, Path]], tmp_path: Path, tree: Callable[[Path], dict[str, bytes | None]]
) -> None:
    subject = save(tmp_path)
    whole = _start(subject, tmp_path / "whole").end()
    output = tmp_path / "killed"
    process = _start(subject, output)
    early = process.wait_for('"step": 5')
    process.kill()
    assert not output.exists()
    begun = newest_checkpoint(workspace_of(output))
    assert begun is not None
    rest = _start(subject, output, "--resume").end()
    wanted, before, after = map(_losses, (whole, early, rest))
    assert list(wanted) == list(range(1, STEPS + 1))
    assert before == {step: wanted[step] for step in range(1, 6)}
    first = int(begun.name.partition("-")[2]) + 1
    assert 3 <= first <= 7
    assert after == {step: wanted[step] for step in range(first, STEPS + 1)}
    one, other = tree(tmp_path / "whole"), tree(output)
    assert one["model.safetensors"] == other["model.safetensors"]
    last = [json.loads(lines[-1]) for lines in (whole, rest)]
    assert last[0]["losses"] == last[1]["losses"]
    series = [[entry.get("eval_loss", entry.get("loss")) for entry in report["history"]] for report in last]
    assert series[0] == series[1] or series[0] == series[1][: len(series[0])]


def _stop(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
    if state.global_step == 3:
        raise KeyboardInterrupt


def _interrupt(subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(training_run._Reporter, "on_step_end", _stop)
        with pytest.raises(KeyboardInterrupt):
            trained(subject, **more)
    return workspace_of(subject[0].parent / "uptrained")


def test_an_interrupted_run_is_not_lost_by_accident(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _interrupt(subject, monkeypatch)
    assert newest_checkpoint(work) == work / "checkpoint-2"
    with pytest.raises(TrainingError, match="--resume, or start again by --force"):
        trained(subject)
    with pytest.raises(TrainingError, match=r"other settings .*seed: was 0, is 1"):
        trained(subject, seed=1, resume=True)
    assert newest_checkpoint(work) == work / "checkpoint-2"
    resumed = trained(subject, resume=True)
    assert not work.exists()
    again = trained(subject, force=True)
    assert again.losses == resumed.losses
    assert again.series("loss") == resumed.series("loss")


def test_a_rate_that_was_found_is_not_tried_again(subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(QUICK, "learning_rate")
    work = _interrupt(subject, monkeypatch)
    found = json.loads((work / "rate.json").read_text())
    monkeypatch.setattr("mha2gqa.verbs.uptrain.rates._tried", pytest.fail)
    resumed = trained(subject, resume=True)
    assert [[one.rate, one.loss] for one in resumed.trials] == found
    assert resumed.learning_rate == min(found[1:], key=lambda one: one[1])[0]


def test_a_checkpoint_that_was_cut_off_is_none(subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"trainer": {"save_steps": 1}}
    work = _interrupt(subject, monkeypatch, **more)
    assert newest_checkpoint(work) == work / "checkpoint-2"
    state = work / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert newest_checkpoint(work) == work / "checkpoint-1"
    resumed = trained(subject, resume=True, **more)
    assert [step for step, _ in resumed.series("loss")] == [1, 2, 3, 4]


def test_there_must_be_something_to_resume(subject: tuple[Path, Path]) -> None:
    with pytest.raises(TrainingError, match="no interrupted run"):
        trained(subject, resume=True)


def test_a_run_killed_behind_its_last_step_only_writes(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mha2gqa.verbs.uptrain import run as command

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "write_result", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(subject)
    resumed = trained(subject, resume=True)
    assert resumed.output.is_dir()
    again = trained(subject, force=True)
    assert (again.losses, again.series("eval_loss")) == (resumed.losses, resumed.series("eval_loss"))


def test_a_loss_that_is_not_finite_stops_the_run(subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mha2gqa.verbs.uptrain.trainer import UptrainTrainer

    loss = UptrainTrainer.compute_loss

    def broken(self: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        value = loss(self, model, inputs, *more, **named)
        return value * torch.nan if model.training and self.state.global_step == 3 else value

    monkeypatch.setattr(UptrainTrainer, "compute_loss", broken)
    with pytest.raises(TrainingError) as caught:
        trained(subject)
    message = str(caught.value)
    assert "loss of step 4 is not finite" in message
    assert "learning rate of" in message
    assert str(workspace_of(subject[0].parent / "uptrained") / "checkpoint-2") in message
    assert not (subject[0].parent / "uptrained").exists()


def test_two_runs_for_one_output_exclude_one_another(
    subject: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mha2gqa.errors import OutputError
    from mha2gqa.verbs.uptrain import run as command

    run = command.run

    def again(*arguments: Any) -> Any:
        with pytest.raises(OutputError, match="Another run"):
            trained(subject, force=True)
        return run(*arguments)

    monkeypatch.setattr(command, "run", again)
    assert trained(subject).written
