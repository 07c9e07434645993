"""One training run: the pieces put together, the Trainer let go, and where it left its weights.

Which steps come before and after is the command's; what a step does is `trainer.py`'s.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mha2gqa.progress import Progress
from mha2gqa.verbs.uptrain.outcome import gap_closed
from mha2gqa.verbs.uptrain.plan import Job
from mha2gqa.verbs.uptrain.text import TrainingText
from mha2gqa.verbs.uptrain.trainer import UptrainTrainer
from mha2gqa.verbs.uptrain.workspace import newest_checkpoint, read_state


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run left."""

    weights: Path
    """A directory with the weights that are kept, as the Trainer saves them."""
    step: int
    """The step that they are of; 0 is the start, whose weights are the converted checkpoint's."""
    history: list[Mapping[str, Any]]
    """The Trainer's log, of every process start of this run together."""
    seconds: float
    """Of training in this process, measurements included."""
    steps_here: int
    """Steps of this process: fewer than all after `--resume`."""


def run(job: Job, text: TrainingText, progress: Progress) -> Finished:
    """Train, from the last checkpoint in the workspace on if there is one; the job has its models no longer after it.

    Raises:
        TrainingError: A loss is not finite.
    """
    arguments = job.arguments
    work = Path(str(arguments.output_dir))
    last = newest_checkpoint(work)
    arguments.eval_on_start = last is None
    trainer = UptrainTrainer(job, text)
    job.student = job.original = None
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Reporter(progress, time.monotonic()))
    state = {} if last is None else read_state(last)
    begun = int(state.get("global_step", 0))
    started = time.monotonic()
    if begun < arguments.max_steps:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        history: list[Any] = trainer.state.log_history
    else:  # killed behind the last step
        history = state["log_history"]
    seconds = time.monotonic() - started
    step = _best_step(history, work, arguments.max_steps) if job.options.keep == "best" else arguments.max_steps
    weights = work / f"checkpoint-{step}"
    if step == arguments.max_steps and not _is_whole(weights):
        _save_whole(trainer, weights)
    trainer.accelerator.wait_for_everyone()
    return Finished(
        weights=weights, step=step, history=history, seconds=seconds, steps_here=arguments.max_steps - begun
    )


def _best_step(history: Sequence[Mapping[str, Any]], work: Path, last: int) -> int:
    """Return the step with the least held-out loss whose weights are there, the first of several.

    The start is 0; its weights are the converted checkpoint's. Those of the last step can always be had, and stand for
    others where nothing was measured.
    """
    losses = {int(entry["step"]): float(entry["eval_loss"]) for entry in history if "eval_loss" in entry}
    there = [step for step in losses if step in (0, last) or _is_whole(work / f"checkpoint-{step}")]
    return min(sorted(there), key=lambda step: losses[step]) if last in there else last


def _is_whole(weights: Path) -> bool:
    return any(weights.glob("*model*.safetensors"))


def _save_whole(trainer: UptrainTrainer, directory: Path) -> None:
    """Save weights that the Trainer has left sharded, or not at all."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(directory))


class _Reporter(TrainerCallback):
    """Tells of the log as it is written, and has the last step measured."""

    def __init__(self, progress: Progress, started: float) -> None:
        self._progress, self._started = progress, started

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **others: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        facts = {"step": state.global_step, "steps": state.max_steps, "seconds": time.monotonic() - self._started}
        if "loss" in logs:
            self._progress.event(
                {"kind": "training", **facts, "loss": logs["loss"], "learning_rate": logs["learning_rate"]}
            )
        elif "eval_loss" in logs:
            held = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
            before, now, original = held[0], logs["eval_loss"], logs.get("eval_original_loss")
            told = {"loss": now, "before": before, "original": original}
            told |= {"gap_closed": gap_closed(before, now, original)}
            self._progress.event({"kind": "held-out", **facts, **told})
