"""How long a run is, and what else its options say alone: judged before anything that trains is imported.

How long is said in steps, tokens, or a fraction alpha of the original's pre-training. Source of alpha: Ainslie et al.
2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints", section 2.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mha2gqa.errors import TrainingError
from mha2gqa.files.reader import read_json
from mha2gqa.files.source import reference_directory
from mha2gqa.units import parse_count
from mha2gqa.verbs.uptrain.options import UptrainOptions

_LONGEST = 100.0
"""Pre-trainings that an uptraining lasts, at most; papers take a twentieth of one."""
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


def check_keys(given: Mapping[str, Any]) -> None:
    """Refuse fields of the Trainer that are decided by options of `uptrain`.

    Raises:
        TrainingError: One is.
    """
    for key in given:
        if key in _OURS:
            raise TrainingError(f"trainer: {key} is not for recipes to set", expected=_OURS[key])


def check_weights(options: UptrainOptions) -> None:
    """Refuse numbers that can be no weights, ranks or temperatures.

    Raises:
        TrainingError: One is.
    """
    wrong = {
        "--temperature": None if options.temperature > 0 else options.temperature,
        "--lm-weight": None if 0 <= options.lm_weight <= 1 else options.lm_weight,
        "--hidden-weight": None if options.hidden_weight >= 0 else options.hidden_weight,
        "--lora-rank": None if options.lora_rank > 0 else options.lora_rank,
        "--held-out-tokens": options.held_out_tokens if (options.held_out_tokens or 2) < 2 else None,
    }
    for name, value in wrong.items():
        if value is not None:
            raise TrainingError(f"{name} is {value}", expected="a number above zero (weights: from 0, a share to 1)")
