"""From options to how long a run is and to transformers.TrainingArguments.

What the user gives the Trainer goes through as it is, the rest is chosen here. The merged recipe is what a run can be
repeated with; it is saved with the output. Fields that decide where the run writes, how long it takes or which weights
it keeps are options of `uptrain`, and refused here.

How long is said in steps, tokens, or a fraction alpha of the original's pre-training. Source of alpha: Ainslie et al.
2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", section 2.1.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from mha2gqa.errors import TrainingError
from mha2gqa.files.reader import read_json
from mha2gqa.files.source import reference_directory
from mha2gqa.units import parse_count
from mha2gqa.verbs.uptrain.options import UptrainOptions

_OURS = {
    "output_dir": "-o",
    "max_steps": "--steps, --tokens or --alpha",
    "num_train_epochs": "--steps, --tokens or --alpha",
    "resume_from_checkpoint": "--resume",
    "load_best_model_at_end": "--keep",
    "metric_for_best_model": "--keep",
    "greater_is_better": "--keep",
    "seed": "--seed",
    "data_seed": "--seed",
    "remove_unused_columns": "nothing: the columns are known",
    "label_names": "nothing: the columns are known",
    "label_smoothing_factor": "--objective",
    "eval_on_start": "nothing: it is measured",
    "push_to_hub": "--push-to-hub",
}
"""Field -> what to use instead."""

_RATES = {"attention": 3e-3, "kv": 3e-3, "all": 1e-3, "lora": 3e-3}
"""What small models learn quickest at; `rates.py` tries them, and lower ones."""
_BATCH_TOKENS = 4096
_LONGEST = 100.0
"""Pre-trainings that an uptraining lasts, at most; papers take a twentieth of one."""
_UNSAVED = {"output", "resume", "force", "dry_run", "report", "push_to_hub", "private"}
"""Options that do not change the weights."""


def check_trainer(given: Mapping[str, Any]) -> None:
    """Refuse keys that are no fields of TrainingArguments, or are decided by options of `uptrain`.

    Raises:
        TrainingError: One is.
    """
    known = [field.name for field in fields(TrainingArguments) if field.init]
    for key in given:
        if key in _OURS:
            raise TrainingError(f"trainer: {key} is not for recipes to set", expected=_OURS[key])
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            raise TrainingError(
                f"trainer: {key} is no field of transformers.TrainingArguments",
                expected="one of its fields",
                remedy=f"Did you mean {close[0]}?" if close else "See its documentation",
            )


def build_arguments(options: UptrainOptions, context: int, work: Path) -> TrainingArguments:
    """Build the arguments of the Trainer, all but the number of steps; joins the process group of a launcher.

    Raises what transformers raises for a value that it rejects (`rehearsal.py`).

    Args:
        options: As asked for.
        context: Tokens of a block.
        work: Where checkpoints go.
    """
    # transformers fills in dictionaries in place.
    chosen = _defaults(options, context) | copy.deepcopy(dict(options.trainer))
    fixed: dict[str, Any] = {
        "output_dir": str(work),
        "seed": options.seed,
        "data_seed": options.seed,
        "remove_unused_columns": False,
        "max_steps": 1,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
    }
    return TrainingArguments(**chosen, **fixed)


def set_steps(arguments: TrainingArguments, steps: int, given: Mapping[str, Any]) -> None:
    """Give the arguments their number of steps, and what follows from it: when to measure, save and warm up."""
    arguments.max_steps = steps
    often = min(steps, max(10, steps // 10))
    chosen = {"eval_steps": often, "save_steps": often, "warmup_steps": steps // 10}
    for name, value in chosen.items():
        if name not in given:
            setattr(arguments, name, value)


def merged_recipe(options: UptrainOptions, arguments: TrainingArguments) -> dict[str, Any]:
    """Return the whole recipe, as it can be given to `--config` again."""
    content: dict[str, Any] = {}
    for name, value in asdict(options).items():
        if name in _UNSAVED or value in (None, (), {}) or name == "trainer":
            continue
        content[name] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    names = {*_defaults(options, 1), *options.trainer, "eval_steps", "save_steps", "warmup_steps"}
    names -= {"learning_rate"} - options.trainer.keys()  # it is chosen when the models are there
    content["trainer"] = {name: _plain(getattr(arguments, name)) for name in sorted(names)}
    # A dictionary may be parsed or filled in place: what was given is what can be given again.
    content["trainer"] |= {name: _plain(value) for name, value in options.trainer.items()}
    return content


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """Return a recipe as YAML."""
    text: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    return text


def _defaults(options: UptrainOptions, context: int) -> dict[str, Any]:
    has_cuda = torch.cuda.is_available() and not options.trainer.get("use_cpu")
    half = {} if {"bf16", "fp16"} & set(options.trainer) else {"bf16": has_cuda and torch.cuda.is_bf16_supported()}
    batch = max(1, _BATCH_TOKENS // context)
    return half | {
        "learning_rate": _RATES[options.train],
        "lr_scheduler_type": "cosine",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": has_cuda,
    }


def _plain(value: Any) -> Any:
    """Return a value as YAML can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    plain = getattr(value, "value", value)  # enumerations
    return plain if isinstance(plain, (bool, int, float, str, type(None))) else str(plain)


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is."""

    steps: int
    tokens_per_step: int
    pretraining_tokens: int | None
    """Tokens of the original's pre-training, where they are known."""

    @property
    def tokens(self) -> int:
        """Tokens that are trained on, repetitions included."""
        return self.steps * self.tokens_per_step

    @property
    def alpha(self) -> float | None:
        """Fraction of the pre-training."""
        return self.tokens / self.pretraining_tokens if self.pretraining_tokens else None


def check_length(options: UptrainOptions) -> None:
    """Refuse a length that is missing, contradictory or no length, before anything is loaded.

    Raises:
        TrainingError: It is.
    """
    named = {"--steps": options.steps, "--tokens": options.tokens, "--alpha": options.alpha}
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1:
        raise TrainingError(
            f"How long to train is given {'by ' + ' and '.join(given) if given else 'by nothing'}",
            expected="exactly one of --steps, --tokens and --alpha",
        )
    if options.steps is not None and options.steps < 1:
        raise TrainingError(f"--steps is {options.steps}", expected="at least one")
    if options.alpha is not None and not 0 < options.alpha <= _LONGEST:
        raise TrainingError(f"--alpha is {options.alpha}", expected="a fraction above zero, such as 0.05")
    if options.tokens is not None:
        _count(options.tokens, "--tokens")
    if options.pretraining_tokens is not None:
        _count(options.pretraining_tokens, "--pretraining-tokens")


def find_length(options: UptrainOptions, original: Path | None, tokens_per_step: int) -> Length:
    """Return how long to train; at least one step.

    Args:
        options: As asked for; `check_length` has found them good.
        original: Directory of the original, if it is at hand; the reference knows its own pre-training.
        tokens_per_step: Of all processes and accumulated batches together.

    Raises:
        TrainingError: A fraction is asked for of a pre-training of unknown length.
    """
    known = _pretraining(options, original)
    if options.steps is not None:
        steps = options.steps
    elif options.tokens is not None:
        steps = max(1, round(_count(options.tokens, "--tokens") / tokens_per_step))
    elif options.alpha is not None and known is not None:
        steps = max(1, round(options.alpha * known / tokens_per_step))
    else:
        raise TrainingError(
            f"--alpha {options.alpha} of how many tokens of pre-training?",
            expected="--pretraining-tokens, for example 2T",
            remedy="The model's paper or card says it; or give --tokens",
        )
    return Length(steps=steps, tokens_per_step=tokens_per_step, pretraining_tokens=known)


def _pretraining(options: UptrainOptions, original: Path | None) -> int | None:
    if options.pretraining_tokens is not None:
        return _count(options.pretraining_tokens, "--pretraining-tokens")
    if original is not None and original.resolve() == reference_directory().resolve():
        return int(read_json(original / "training.json")["tokens"])
    return None


def _count(text: str, option: str) -> int:
    try:
        return parse_count(text)
    except ValueError:
        raise TrainingError(
            f"{option} is {text!r}", expected="a number of tokens, such as 500000, 20M, 1.5B or 2T"
        ) from None
