"""The plot of an uptraining: the losses by step, for the page and as a picture.

The style is `figures.py`'s; no number is computed here that the report does not hold.
"""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mha2gqa.pages.figures import CONVERTED, HEIGHT, INK, LINE, MUTED, ORIGINAL, STYLE, WIDTH, Plot, drawing, legend
from mha2gqa.verbs.uptrain.outcome import UptrainReport

_COLOURS = {INK: "#1b2126", MUTED: "#5a656e", LINE: "#dcdfe0", ORIGINAL: "#0a66b0", CONVERTED: "#b34a00"}
"""What stands for the style sheet's colours in a picture."""


def loss_plot(report: UptrainReport) -> Plot:
    """Plot the held-out losses, and what was learned from, against the step."""
    with drawing("training", "Losses in nats a token against the training step.") as plot:
        _draw(plot.axes, report, {colour: colour for colour in _COLOURS})
    caption = "Held-out text is not trained on; the dotted line is where a perfect recovery would end."
    return Plot("Loss by step", caption, plot.svg)


def loss_png(report: UptrainReport) -> bytes:
    """Return the same plot as a PNG, on white."""
    style = {key: _COLOURS.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH * 1.25, HEIGHT * 1.25), layout="constrained", dpi=120)
        _draw(figure.add_subplot(), report, _COLOURS)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="#ffffff", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, report: UptrainReport, colours: dict[str, str]) -> None:
    held_out = report.series("eval_loss")
    if report.objective == "lm" and (learned := report.series("loss")):
        axes.plot(*zip(*learned, strict=True), color=colours[MUTED], linewidth=0.7, alpha=0.6, label="training text")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "s-", color=colours[CONVERTED], label="held-out")
    if report.losses is not None and report.losses.original is not None:
        axes.axhline(report.losses.original, color=colours[ORIGINAL], linestyle=":", label="original, held-out")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    legend(axes)
