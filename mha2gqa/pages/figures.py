"""The style of every plot, and a plot as SVG that takes its colours and fonts from the page around it.

A figure is drawn in placeholder colours (`INK`, `ORIGINAL`, ...), which become CSS variables of the style sheet:
one drawing serves light, dark and print. Text stays text. The same input gives the same bytes.

What is plotted is decided elsewhere. No window system and no global state: no pyplot.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mha2gqa.pages.page import visible

INK, MUTED, LINE = "#010101", "#020202", "#030303"
ORIGINAL, CONVERTED, BAD = "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    ORIGINAL: "--original",
    CONVERTED: "--converted",
    BAD: "--bad",
}

WIDTH, HEIGHT = 5.2, 2.9
"""Inches of a common plot; its text is then legible on a phone, and two fit beside one another on a screen."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mha2gqa",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that the layout is the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 1,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}


@dataclass(frozen=True)
class Plot:
    """A figure for a page."""

    title: str
    """What it shows, as a phrase."""
    caption: str
    """What to read from it, as a sentence."""
    svg: Markup = field(repr=False)


@dataclass
class Drawing:
    """Axes to draw on, and afterwards the SVG."""

    axes: Axes
    svg: Markup = field(default_factory=Markup)


@contextmanager
def drawing(name: str, description: str, *, width: float = WIDTH, height: float = HEIGHT) -> Iterator[Drawing]:
    """Give axes in the common style; when the block ends, `svg` holds what was drawn.

    Args:
        name: Unlike that of any other figure on the page; keeps their ids apart.
        description: What a reader who cannot see it should be told.
        width: Inches.
        height: Inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        one = Drawing(figure.add_subplot())
        yield one
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        one.svg = _inline(buffer.getvalue(), name, description)


def legend(axes: Axes) -> None:
    """Put the legend above the plot, on one line."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, borderaxespad=0.2, handlelength=1.6)


def _inline(svg: str, name: str, description: str) -> Markup:
    """Return an SVG file as an element of a page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', body)
    inner = body[body.index(">") + 1 :]
    inner = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", inner)
    inner = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", inner)
    for colour, variable in _VARIABLES.items():
        inner = inner.replace(colour, f"var({variable})")
    label = escape(visible(description))
    return Markup(f'<svg class="plot" role="img" aria-label="{label}" {view[0] if view else ""}>{inner}')  # noqa: S704
