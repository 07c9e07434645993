"""transformers' Trainer with our objective, an exact held-out loss, and a stop where a loss is not finite.

Everything else (loop, optimiser, scheduler, processes, sharding, checkpoints, logging) is the Trainer's. The original
takes part as a model in inference mode; it is sharded like the student where FSDP shards that.

Legend: L layers, B blocks of a batch, T tokens of a block, V vocabulary, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from mha2gqa.errors import TrainingError
from mha2gqa.model.divergence import summed_divergence
from mha2gqa.model.feed import Body
from mha2gqa.verbs.uptrain.held_out import loss_sums
from mha2gqa.verbs.uptrain.plan import Job
from mha2gqa.verbs.uptrain.text import TrainingText
from mha2gqa.verbs.uptrain.workspace import newest_checkpoint

_ORIGINAL = "eval_original_loss"


class UptrainTrainer(Trainer):
    """Trains a student.

    Args:
        job: What trains, by what.
        text: What is learned from, and measured on.
    """

    def __init__(self, job: Job, text: TrainingText) -> None:
        super().__init__(
            model=job.student,
            args=job.arguments,
            train_dataset=text.training,
            eval_dataset=text.held_out,
            data_collator=job.task.collate,
            compute_loss_func=job.task.loss,
        )
        self._options, self._weights, self._task, self._original = job.options, job.loss_weights, job.task, job.original
        self._body: Any = None
        self.original_loss: float | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch, normalised over the whole step as the Trainer does for cross-entropy."""
        lm_weight, weight = self._weights
        if not weight:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BT = inputs["labels"]
        counts_BT = (self._task.targets(labels_BT) != -100).float()
        fed = {name: value for name, value in inputs.items() if name != "labels"}
        wants_hidden = self._options.hidden_weight > 0
        more: dict[str, Any] = {"output_hidden_states": True} if wants_hidden else {}
        if lm_weight and self._task.loss is None:
            more |= {"labels": labels_BT}
            more |= {"num_items_in_batch": num_items_in_batch} if self.model_accepts_loss_kwargs else {}
        outputs = model(**fed, **more, use_cache=False)
        wanted, hidden = self._ask_original(fed, outputs.logits, wants_hidden=wants_hidden)
        loss = weight * summed_divergence(wanted, outputs.logits, counts_BT, self._options.temperature)
        if wants_hidden:
            states = getattr(outputs, self._task.states)[1:]
            loss = loss + self._options.hidden_weight * hidden_error(hidden, states, counts_BT)
        loss = loss / (counts_BT.sum() if num_items_in_batch is None else num_items_in_batch)
        if lm_weight:
            own = self._task.loss
            loss = loss + lm_weight * (outputs.loss if own is None else own(outputs, labels_BT, num_items_in_batch))
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Take the gradient of a batch; stop where its loss is not finite on any process.

        Raises:
            TrainingError: It is not; nothing was written since the last checkpoint.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        broken = (~torch.isfinite(loss)).float()
        if self.accelerator.num_processes > 1:
            broken = self.accelerator.reduce(broken, reduction="sum")
        if broken.item() > 0:
            raise _not_finite(self.state.global_step + 1, self._get_learning_rate(), Path(str(self.args.output_dir)))
        return loss

    def _ask_original(self, fed: Any, like_BTV: torch.Tensor, *, wants_hidden: bool) -> tuple[Any, Any]:
        """Run the original once; return what gives its logits at a range of positions, and its hidden states."""
        original = self._placed(like_BTV.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            if wants_hidden or not self._body:
                outputs = original(**fed, use_cache=False, output_hidden_states=wants_hidden)
                hidden = getattr(outputs, self._task.states)[1:] if wants_hidden else None
                return (lambda span: outputs.logits[:, span]), hidden
            return self._body.answer(fed), None

    def _placed(self, device: torch.device) -> PreTrainedModel:
        """Return the original where the student is; the first call puts it there, or shards it."""
        if self._original is None:
            raise RuntimeError("the original is not at hand")
        if self._body is None:
            placed: Any = self._original.requires_grad_(requires_grad=False).eval()
            if not self.is_fsdp_enabled:
                self._original = placed.to(device)
                self._body = Body(placed, torch.arange(16, device=device)[None])
            elif self.accelerator.is_fsdp2:
                from accelerate.utils.fsdp_utils import fsdp2_prepare_model

                self._original, self._body = fsdp2_prepare_model(self.accelerator, placed), False
            else:
                self._original, self._body = self.accelerator.prepare_model(placed), False
        return self._original

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Measure the held-out loss exactly, in nats a token: sums over all processes, divided once.

        The original's is measured with the first.
        """
        model = self.model_wrapped
        was_training = model.training
        known = [entry[_ORIGINAL] for entry in self.state.log_history if _ORIGINAL in entry]
        if self._original is not None and self.original_loss is None:
            self.original_loss = known[0] if known else self._mean_loss(self._placed(self.args.device))
        metrics = {"eval_loss": self._mean_loss(model.eval())}
        if self.original_loss is not None:
            metrics[_ORIGINAL] = self.original_loss
        model.train(was_training)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(metrics))
        return metrics

    def _mean_loss(self, model: nn.Module) -> float:
        size, rank, world = self.args.per_device_eval_batch_size, self.args.process_index, self.args.world_size
        with self.compute_loss_context_manager():
            sums = loss_sums(model, self.eval_dataset, self._task, size, self.args.device, rank, world)
        total = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        return float(total[0] / total[1])


def hidden_error(
    wanted_LBTD: Sequence[torch.Tensor], answer_LBTD: Sequence[torch.Tensor], counts_BT: torch.Tensor
) -> torch.Tensor:
    """Return the sum over positions of the layers' squared error relative to the output's energy, mean of layers.

    Args:
        wanted_LBTD: Hidden states of the original, one tensor a layer.
        answer_LBTD: Those of the student.
        counts_BT: 1 where a position counts, 0 elsewhere.
    """
    errors = []
    for wanted_BTD, answer_BTD in zip(wanted_LBTD, answer_LBTD, strict=True):
        wanted, answer = wanted_BTD.to(answer_BTD.device).float(), answer_BTD.float()
        energy = wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(((answer - wanted).square().mean(-1) / energy * counts_BT.to(answer.device)).sum())
    return torch.stack(errors).sum() / max(1, len(errors))


def _not_finite(step: int, rate: float, work: Path) -> TrainingError:
    last = newest_checkpoint(work)
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    return TrainingError(
        f"The loss of step {step} is not finite at a learning rate of {rate:.3g}; {kept}",
        expected="a finite loss",
        remedy="Try a lower learning rate (--trainer learning_rate=...), other data, or bf16 instead of fp16",
    )
