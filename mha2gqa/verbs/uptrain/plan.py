"""Everything that a run will do, before it does anything; every refusal that can be made early is made here.

`plan_job` reads configs, headers and the data's first document. `Job.load` then loads the models, and refuses what
only they tell. Nothing is written.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from mha2gqa.errors import TrainingError
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.files.staging import check_output
from mha2gqa.model.load import load_model
from mha2gqa.rates import Trial
from mha2gqa.refine.latent.modules import free_norms
from mha2gqa.verbs.uptrain.early import output_of
from mha2gqa.verbs.uptrain.length import Length, check_keys, check_length, check_weights, find_length
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.outcome import UptrainReport
from mha2gqa.verbs.uptrain.pairs import pairs
from mha2gqa.verbs.uptrain.parameters import count_parameters, select_parameters
from mha2gqa.verbs.uptrain.recipe import build_arguments, check_trainer, merged_recipe, set_steps
from mha2gqa.verbs.uptrain.rehearsal import rehearsed
from mha2gqa.verbs.uptrain.running_text import running_text
from mha2gqa.verbs.uptrain.settings import typed
from mha2gqa.verbs.uptrain.subject import Subject, find_subject
from mha2gqa.verbs.uptrain.text import Reading, Task, TrainingText
from mha2gqa.verbs.uptrain.workspace import check_workspace, workspace_of

_ADAM, _CHECKPOINTS = 8, 3
"""Bytes of optimiser state for a trained parameter; checkpoints that are there at a time."""


@dataclass
class Job:
    """A run that is planned."""

    options: UptrainOptions
    subject: Subject
    output: Path
    arguments: TrainingArguments
    task: Task
    length: Length
    recipe: dict[str, Any]
    parameters: Mapping[str, int] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    """What the learning rate was chosen by."""
    student: nn.Module | None = None
    original: PreTrainedModel | None = None

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weight of the cross-entropy and of the divergence."""
        share = {"lm": 1.0, "distil": 0.0, "mix": self.options.lm_weight}[self.subject.objective]
        return share, 1 - share

    @property
    def is_main(self) -> bool:
        """Whether this process prepares the text and writes."""
        return bool(self.arguments.process_index == 0)

    def load(self) -> None:
        """Load the models, and freeze what does not train.

        Raises:
            TrainingError: Nothing trains, or the model has no next token to predict.
            CheckpointError: A checkpoint does not load.
        """
        subject, options = self.subject, self.options
        model = load_model(subject.directory, dtype="float32", device="cpu")
        free_norms(model)  # of latents, which nothing can be learned behind
        self.task = self.task.fitted(model)
        changes = subject.record.conversion.config_changes
        self.student = select_parameters(
            model, subject.converted.architecture, changes, options.train, options.lora_rank
        )
        self.parameters = count_parameters(self.student)
        if subject.original is not None:
            dtype = "bfloat16" if self.arguments.bf16 else "float16" if self.arguments.fp16 else "float32"
            self.original = load_model(subject.original.directory, dtype=dtype, device="cpu")
        size = subject.converted.size
        saved = self.parameters["trained"] * _ADAM + self.parameters["all"] * 4
        check_output(self.output, subject.directory, size + _CHECKPOINTS * saved, force=options.force)

    @property
    def reading(self) -> Reading:
        """How much is read."""
        return Reading(options=self.options, task=self.task, tokens=self.length.tokens, device=self.arguments.device)

    def report(self, text: TrainingText | None = None) -> UptrainReport:
        """Return what is planned, with the measures of the text once that is there."""
        original = self.subject.original
        rows_per_step = self.length.tokens_per_step / self.task.row_tokens
        return UptrainReport(
            converted=str(self.subject.directory),
            original=None if original is None else original.hub_id or str(original.directory),
            output=self.output,
            written=False,
            model_type=self.subject.record.conversion.model_type,
            train=self.options.train,
            objective=self.subject.objective,
            parameters=self.parameters,
            length=self.length,
            text=self.task.describe(),
            learning_rate=self.arguments.learning_rate,
            trials=self.trials,
            processes=self.arguments.world_size,
            device=str(self.arguments.device),
            mixes=self.task.mixes,
            recipe=self.recipe,
            text_tokens=None if text is None else text.tokens,
            step_tokens=None if text is None else rows_per_step * text.tokens / len(text.training),
        )


def plan_job(options: UptrainOptions) -> Job:
    """Plan a run.

    Raises:
        Mha2GqaError: The request is refused.
    """
    check_length(options)
    check_keys(options.trainer)
    check_trainer(options.trainer)
    options = replace(options, trainer=typed(options.trainer))
    check_weights(options)
    subject = find_subject(options)
    refuse_quantised(subject.checkpoint.config)
    task: Task = (pairs if subject.learns_from_pairs else running_text)(subject, options)
    task.check()
    output = output_of(options, subject.directory)
    check_output(output, subject.directory, subject.converted.size, force=options.force)
    if subject.original is not None:
        check_output(output, subject.original.directory, 0, force=options.force)
    check_workspace(output, resume=options.resume, force=options.force)
    arguments = _arguments(options, subject, task, output)
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    original = None if subject.original is None else subject.original.directory
    length = find_length(options, original, batch * task.row_tokens)
    set_steps(arguments, length.steps, options.trainer)
    recipe = merged_recipe(options, arguments) | {"objective": subject.objective}
    return Job(options, subject, output, arguments, task, length, recipe)


def _arguments(options: UptrainOptions, subject: Subject, task: Task, output: Path) -> TrainingArguments:
    work = workspace_of(output)

    def build(given: Mapping[str, Any]) -> TrainingArguments:
        return build_arguments(replace(options, trainer=given), task.row_tokens, work)

    arguments = rehearsed(build, options.trainer, without_launcher=options.dry_run and "WORLD_SIZE" not in os.environ)
    model = subject.converted.architecture.outline
    if arguments.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise TrainingError(
            f"trainer: gradient_checkpointing is not supported by {type(model).__name__}", remedy="Leave it out"
        )
    return arguments
