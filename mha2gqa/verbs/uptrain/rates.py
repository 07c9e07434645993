"""The learning rate where none is named: `mha2gqa/rates.py`, with the steps that a run begins with.

A run on several processes, whose model may be whole on none of them, takes a rate by the width instead, on the safe
side.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from mha2gqa.files.working import replace_file
from mha2gqa.progress import Advance
from mha2gqa.rates import MOST_RATES, Trial, best_rate, steps_at_each, try_rates
from mha2gqa.verbs.uptrain.held_out import loss_sums
from mha2gqa.verbs.uptrain.outcome import TRIED_TOKENS
from mha2gqa.verbs.uptrain.plan import Job
from mha2gqa.verbs.uptrain.text import TrainingText
from mha2gqa.verbs.uptrain.trainer import UptrainTrainer

_FILE = "rate.json"
_BY_WIDTH = 0.1
"""The safe rate of a model one number wide: 1.7e-4 at 576, 2.4e-5 at 4096."""


def choose_rate(job: Job, text: TrainingText, advance: Advance) -> tuple[Trial, ...]:
    """Set the learning rate of a run, unless it is named; what was tried is kept in the workspace for `--resume`.

    Args:
        job: The run, with its models loaded.
        text: What is learned from, and measured on.
        advance: Told of every step.

    Returns:
        What was tried, the start first, with a rate of 0; empty where nothing was.
    """
    arguments = job.arguments
    if "learning_rate" in job.options.trainer:
        return ()
    highest = arguments.learning_rate
    if arguments.world_size > 1 or arguments.fsdp or arguments.deepspeed:
        arguments.learning_rate = min(highest, _BY_WIDTH / _width(job))
        return ()
    path = Path(str(arguments.output_dir)) / _FILE
    if not path.is_file():
        replace_file(path, json.dumps([[one.rate, one.loss] for one in _tried(job, text, highest, advance)]).encode())
    trials = tuple(Trial(rate=rate, loss=loss) for rate, loss in json.loads(path.read_bytes()))
    arguments.learning_rate = best_rate(trials)
    return trials


def _width(job: Job) -> int:
    config: Any = job.subject.converted.architecture.config.get_text_config(decoder=True)
    return int(config.hidden_size)


def _tried(job: Job, text: TrainingText, highest: float, advance: Advance) -> list[Trial]:
    """Try one rate after the other, and leave the model as it was."""
    devices = [job.arguments.device] if job.arguments.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        trainer = UptrainTrainer(job, text)
        model: Any = trainer.model
        if job.arguments.gradient_checkpointing:  # as the run, or its memory may not do
            model.gradient_checkpointing_enable(job.arguments.gradient_checkpointing_kwargs)
        start = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
        steps, rows = steps_at_each(job.length.steps), _measured(text, job)

        def loss_behind(rate: float) -> float:
            _train(trainer, text.training, rate, steps)
            loss = _loss(trainer, rows, job)
            _restore(model, start)
            advance(steps, steps * MOST_RATES)
            return loss

        return try_rates(highest, _loss(trainer, rows, job), loss_behind)


def _measured(text: TrainingText, job: Job) -> Sequence[Any]:
    rows = max(1, TRIED_TOKENS // job.task.row_tokens)
    return [text.held_out[number] for number in range(min(rows, len(text.held_out)))]


def _loss(trainer: UptrainTrainer, rows: Sequence[Any], job: Job) -> float:
    """Return the held-out loss; infinity where it is no number."""
    model: Any = trainer.model
    with _half(job.arguments):
        batch = job.arguments.per_device_eval_batch_size
        total, count = loss_sums(model.eval(), rows, job.task, batch, job.arguments.device).tolist()
    loss = total / count
    return loss if math.isfinite(loss) else math.inf


def _train(trainer: UptrainTrainer, rows: Any, rate: float, steps: int) -> None:
    """Take the first steps of a run at an even rate, as the Trainer takes them."""
    arguments, accelerator = trainer.args, trainer.accelerator
    model: Any = trainer.model
    arguments.learning_rate, trainer.optimizer = rate, None
    optimizer: Any = accelerator.prepare(trainer.create_optimizer())
    trainer.current_gradient_accumulation_steps = parts = arguments.gradient_accumulation_steps
    batches = _batches(trainer, rows)
    for _ in range(steps):
        chosen, counted = trainer.get_batch_samples(batches, parts, arguments.device)
        for batch in chosen:
            with _half(arguments):
                Trainer.training_step(trainer, model, batch, counted)  # ours refuses a loss that is no number
        accelerator.unscale_gradients(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()


def _batches(trainer: UptrainTrainer, rows: Any) -> Iterator[Any]:
    size = trainer.args.train_batch_size
    for step in itertools.count():
        yield trainer.data_collator([rows[(step * size + place) % len(rows)] for place in range(size)])


def _half(arguments: Any) -> torch.autocast:
    """Compute as the run does, whose model accelerate wraps; fp16 is left out, whose first steps are often skipped."""
    return torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16)


@torch.no_grad()
def _restore(model: Any, start: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in start:
            parameter.copy_(start[name])
