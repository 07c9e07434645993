"""`uptrain` while it runs, on stderr or as JSON lines, and its report."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mha2gqa.console.progress import Bars
from mha2gqa.console.terminal import err, escape, out, plain_table, print_json_line
from mha2gqa.progress import Progress

if TYPE_CHECKING:
    from rich import progress as bars

    from mha2gqa.verbs.uptrain.outcome import Losses, UptrainReport


class Training(Bars):
    """Shows a run as it goes: a bar with the losses, and a line for each measurement; or JSON lines."""

    def __init__(self, shown: "bars.Progress", *, as_json: bool) -> None:
        super().__init__(shown)
        self._as_json = as_json
        self._step_tokens = 0.0
        self._measured = ""
        self._begun: tuple[int, float] | None = None

    def event(self, event: Mapping[str, Any]) -> None:
        """Take note of the plan, a step, or a measurement."""
        if self._as_json:
            print_json_line(event)
        if event["kind"] == "plan":
            self._step_tokens = event["step_tokens"]
            if not self._as_json:
                err.print(escape(_plan_line(event)), soft_wrap=True, style="dim")
        elif event["kind"] == "held-out":
            self._measured = _measurement(event)
            if not self._as_json:
                step = f"step {event['step']:,}/{event['steps']:,}"
                err.print(f"{step}: {self._measured}", soft_wrap=True, style="dim")
        else:
            self._show_step(event)

    def _show_step(self, event: Mapping[str, Any]) -> None:
        self._begun = self._begun or (event["step"], event["seconds"])
        steps, seconds = event["step"] - self._begun[0], event["seconds"] - self._begun[1]
        speed = f", {steps * self._step_tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
        told = f"loss {event['loss']:.4f}{speed}" + (f"; {self._measured}" if self._measured else "")
        if "training" not in self._tasks:
            self._tasks["training"] = self._shown.add_task("training", total=event["steps"])
        self._shown.update(self._tasks["training"], completed=event["step"], description=told)


@contextlib.contextmanager
def training(*, as_json: bool) -> Iterator[Progress]:
    """Show a run while the block runs."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Shown

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Shown(*columns, console=err, transient=True, disable=as_json or not err.is_terminal) as shown:
        yield Training(shown, as_json=as_json)


def _plan_line(event: Mapping[str, Any]) -> str:
    length = event["length"]
    share = "" if length["alpha"] is None else f", alpha {length['alpha']:.3g}"
    trained = event["parameters"].get("trained")
    what = f"{event['train']} ({trained:,} of {event['parameters']['all']:,} parameters)" if trained else event["train"]
    return (
        f"training {what}, objective {event['objective']}: {length['steps']:,} steps of "
        f"{length['tokens_per_step']:,} tokens ({length['tokens']:,}{share}) of {event['text']}"
    )


def _measurement(event: Mapping[str, Any]) -> str:
    original = "" if event["original"] is None else f", original {event['original']:.4f}"
    gap = "" if event["gap_closed"] is None else f", gap closed {event['gap_closed']:.0%}"
    return f"held-out {event['loss']:.4f}{original}{gap}"


def print_uptraining(report: "UptrainReport") -> None:
    """Print the report of `uptrain`, or its plan after a dry run."""
    length = report.length
    alpha = f", alpha {length.alpha:.3g} of {length.pretraining_tokens:,} tokens" if length.alpha else ""
    rows = {
        "converted": f"{report.converted} ({report.model_type})",
        "original": report.original or "not at hand",
        "output": str(report.output),
        "trained": report.train + _share(report),
        "objective": f"{report.objective}, learning rate {report.learning_rate:g}",
        "length": f"{length.steps:,} steps of {length.tokens_per_step:,} tokens: {length.tokens:,}{alpha}",
        "text": report.text + _repetition(report),
        "run": f"{report.processes} process{'es' * (report.processes > 1)} on {report.device}",
    }
    if report.seconds is not None:
        rows["time"] = f"{report.seconds:.1f} s ({report.tokens_per_second or 0:,.0f} tokens/s, measuring included)"
        rows["weights"] = f"of step {report.step:,}; {report.changed} tensors changed"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, escape(value))
    out.print(table, soft_wrap=True)
    if report.losses is not None:
        _print_losses(report.losses)
    else:
        out.print("\nDry run: nothing was trained, nothing was written.")


def _share(report: "UptrainReport") -> str:
    sizes = report.parameters
    return f", {sizes['trained']:,} of {sizes['all']:,} parameters" if sizes else ""


def _repetition(report: "UptrainReport") -> str:
    if report.rounds is None or report.rounds <= 1:
        return ""
    return f", {report.text_tokens:,} tokens, read {report.rounds:.1f} times"


def _print_losses(losses: "Losses") -> None:
    content = losses.to_json()
    table = plain_table(f"\nheld-out, {losses.tokens:,} tokens", "\nloss, nats a token", "\nperplexity")
    for name in ("before", "after", "original"):
        if content[name] is not None:
            table.add_row(name, f"{content[name]:.4f}", f"{content['perplexities'][name]:#.4g}")
    out.print(table)
    if losses.gap_closed is not None:
        out.print(f"\n{losses.gap_closed:.1%} of the gap closed.")
