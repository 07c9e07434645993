"""What the record and the card say of a run."""

from typing import Any

from mha2gqa.units import perplexity
from mha2gqa.verbs.uptrain.outcome import UptrainReport

_RUN_KEYS = ("train", "objective", "text", "step", "processes", "changed")

NOTHING = "Nothing was gained: at no step was the held-out loss below that of the start, whose weights were kept."

_IN_TRAINING = (
    "The output as it is on disk has {after:.4f}. While it trained, step {step:,} measured {loss:.4f}: that was before "
    "its weights were rounded to the dtype of the file."
)

_TRAINS = {
    "attention": "the converted attention layers",
    "all": "all parameters",
    "kv": "what holds keys and values",
    "lora": "an adapter on the attention, merged into the weights",
}
_LEARNS = {
    "distil": "to answer like the original (KL divergence)",
    "lm": "on the text (cross-entropy)",
    "mix": "on the text and to answer like the original",
}


def record_entry(report: UptrainReport) -> dict[str, Any]:
    """Return the record's entry of a run: JSON values."""
    content = report.to_json()
    kept = {name: content[name] for name in _RUN_KEYS}
    return kept | {"length": content["length"], "losses": content["losses"], "recipe": dict(report.recipe)}


def describe_run(report: UptrainReport) -> str:
    """Return one sentence about what was trained, how long, on what."""
    length = report.length
    alpha = f", {length.alpha:.3g} of the original's pre-training" if length.alpha else ""
    return (
        f"{_TRAINS[report.train].capitalize()}, trained {_LEARNS[report.objective]} for {length.steps:,} steps of "
        f"{length.tokens_per_step:,} tokens of {report.text} ({length.tokens:,} tokens{alpha})."
    )


def of_rounding(report: UptrainReport) -> str:
    """Return why the last figure of the run is not that of the report; empty where they are the same."""
    loss, losses = report.in_training, report.losses
    if loss is None or losses is None or f"{loss:.4f}" == f"{losses.after:.4f}":
        return ""
    return _IN_TRAINING.format(after=losses.after, step=report.step, loss=loss)


def card_section(report: UptrainReport) -> str:
    """Return the card's section about a run: Markdown."""
    lines = ["## Uptrained", "", describe_run(report), ""]
    if losses := report.losses:
        rows = {"converted": losses.before, "uptrained (this checkpoint)": losses.after, "original": losses.original}
        lines += ["| | held-out loss, nats a token | perplexity |", "|---|---|---|"]
        measured = {name: loss for name, loss in rows.items() if loss is not None}
        lines += [f"| {name} | {loss:.4f} | {perplexity(loss):.4g} |" for name, loss in measured.items()]
        lines += ["", NOTHING] if report.step == 0 else []
        lines += ["", f"On {losses.tokens:,} tokens that training has not seen. `uptrain.yaml` is the recipe."]
    return "\n".join(lines) + "\n"
