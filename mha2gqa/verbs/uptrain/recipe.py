"""From options to transformers.TrainingArguments.

What the user gives the Trainer goes through as it is, the rest is chosen here. The merged recipe is what a run can be
repeated with; it is saved with the output. Fields that decide where the run writes, how long it takes or which weights
it keeps are options of `uptrain`, and refused here.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from mha2gqa.errors import TrainingError
from mha2gqa.verbs.uptrain.options import UptrainOptions

_RATES = {"attention": 3e-3, "kv": 3e-3, "all": 1e-3, "lora": 3e-3}
"""What small models learn quickest at; `rates.py` tries them, and lower ones."""
_BATCH_TOKENS = 4096
_UNSAVED = {"output", "resume", "force", "dry_run", "report", "push_to_hub", "private"}
"""Options that do not change the weights."""


def check_trainer(given: Mapping[str, Any]) -> None:
    """Refuse keys that are no fields of TrainingArguments; `check_keys` has refused those that are not to be set.

    Raises:
        TrainingError: One is.
    """
    known = [field.name for field in fields(TrainingArguments) if field.init]
    for key in given:
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
