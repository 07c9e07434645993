"""An `UptrainReport` as a page: what was won back, the losses by step (as a picture, too), and how the run was made.

Words the numbers for `templates/uptrain.html`; nothing is measured here.
"""

import io
from importlib.metadata import version
from pathlib import PurePath

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mha2gqa.pages.figures import CONVERTED, HEIGHT, INK, LINE, MUTED, ORIGINAL, STYLE, WIDTH, Plot, drawing, legend
from mha2gqa.pages.page import render
from mha2gqa.units import perplexity
from mha2gqa.verbs.uptrain.account import describe_run, of_rounding
from mha2gqa.verbs.uptrain.outcome import UptrainReport
from mha2gqa.verbs.uptrain.recipe import recipe_text

_COLOURS = {INK: "#1b2126", MUTED: "#5a656e", LINE: "#dcdfe0", ORIGINAL: "#0a66b0", CONVERTED: "#b34a00"}
"""What stands for the style sheet's colours in a picture."""


def uptrain_page(report: UptrainReport) -> str:
    """Return the page of a run, as HTML that needs no other file."""
    return render(
        "uptrain.html",
        name=PurePath(report.output).name,
        headline=_headline(report),
        summary=describe_run(report),
        losses=_rows(report),
        tokens=report.losses.tokens if report.losses else 0,
        rounded=of_rounding(report),
        plot=loss_plot(report),
        facts=_facts(report),
        recipe=recipe_text(report.recipe),
        version=version("mha2gqa"),
    )


def _headline(report: UptrainReport) -> str:
    closed = report.losses.gap_closed if report.losses else None
    return "Uptrained" if closed is None else f"{closed:.1%} of the gap closed"


def _rows(report: UptrainReport) -> list[tuple[str, str, str]]:
    if report.losses is None:
        return []
    named = {"converted": report.losses.before, "uptrained": report.losses.after, "original": report.losses.original}
    return [(name, f"{loss:.4f}", f"{perplexity(loss):#.4g}") for name, loss in named.items() if loss is not None]


def _facts(report: UptrainReport) -> list[tuple[str, str]]:
    sizes = report.parameters
    return [
        ("converted checkpoint", report.converted),
        ("original", report.original or "not at hand"),
        ("parameters trained", f"{sizes.get('trained', 0):,} of {sizes.get('all', 0):,}"),
        ("weights kept", f"of step {report.step}"),
        ("processes", f"{report.processes} on {report.device}"),
        ("time", f"{report.seconds or 0:.1f} s, {report.tokens_per_second or 0:,.0f} tokens a second"),
    ]


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
