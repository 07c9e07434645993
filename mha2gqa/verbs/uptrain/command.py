"""`uptrain` on the command line: a bar with the losses, and a line for each measurement; or JSON lines."""

from collections.abc import Mapping
from typing import Any

from mha2gqa import console
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.run import uptrain
from mha2gqa.verbs.uptrain.words import measured, plan_line, summary


class Training(console.Bars):
    """Shows a run as it goes."""

    as_json = False
    """Whether each event is printed as a line of JSON."""
    _step_tokens = 0.0
    _measured = ""
    _begun: tuple[int, float] | None = None

    def event(self, event: Mapping[str, Any]) -> None:
        """Take note of the plan, a step, or a measurement."""
        note = None
        if event["kind"] == "plan":
            self._step_tokens = event["step_tokens"]
            note = plan_line(event)
        elif event["kind"] == "held-out":
            self._measured = measured(event)
            note = f"step {event['step']:,}/{event['steps']:,}: {self._measured}"
        else:
            self._step(event)
        if self.as_json:
            console.print_json_line(event)
        elif note is not None:
            console.print_note(note)

    def _step(self, event: Mapping[str, Any]) -> None:
        self._begun = self._begun or (event["step"], event["seconds"])
        steps, seconds = event["step"] - self._begun[0], event["seconds"] - self._begun[1]
        speed = f", {steps * self._step_tokens / seconds:,.0f} tokens/s" if seconds > 0 else ""
        told = f"loss {event['loss']:.4f}{speed}" + (f"; {self._measured}" if self._measured else "")
        self.show("training", event["step"], event["steps"], told)


WORSE = 3
"""Exit code where the weights that were asked for are worse than those that training began with."""


def command(options: UptrainOptions, *, as_json: bool) -> int:
    """Train, print what that gave, in the main process of a launcher, and return the exit code."""
    with console.bars("uptrain", Training, shown=not as_json) as progress:
        progress.as_json = as_json
        report = uptrain(options, progress)
    if report is not None:
        console.print_json_line(report.to_json()) if as_json else console.print_report(summary(report))
    return WORSE if report is not None and report.is_worse else 0
