"""The plots of a verification: loss by position, error by layer, divergence, cache, similarity of heads.

Each function takes a part of the report and returns a `Plot`, or None where there is nothing to plot.
The style is `pages/figures.py`'s; no number is computed here that the report does not hold.
"""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from mha2gqa.pages.figures import BAD, CONVERTED, INK, MUTED, ORIGINAL, Plot, drawing, legend
from mha2gqa.units import format_size
from mha2gqa.verbs.verify.levels import LoadLevel
from mha2gqa.verbs.verify.measures import Divergence, LayerError, PositionLoss
from mha2gqa.verbs.verify.outcome import Similarity

_NAMED_HEADS = 16
"""Most heads whose numbers fit beside a similarity map."""
_BLUE, _ORANGE = (0.10, 0.45, 0.78), (0.87, 0.42, 0.05)


def loss_by_position(positions: Sequence[PositionLoss]) -> Plot | None:
    """Plot the loss of both models against the position in a block."""
    if not positions:
        return None
    centres = [(one.first + one.last) / 2 for one in positions]
    description = "Loss in nats a token against the position in the block, for both models."
    with drawing("loss", description) as plot:
        plot.axes.plot(centres, [one.original for one in positions], "o-", color=ORIGINAL, label="original")
        plot.axes.plot(centres, [one.converted for one in positions], "s-", color=CONVERTED, label="converted")
        plot.axes.set(xlabel="position in the block (tokens)", ylabel="loss (nats a token)")
        legend(plot.axes)
    caption = "A gap that widens with the position points at attention over long distances."
    return Plot("Loss by position", caption, plot.svg)


def error_by_layer(layers: Sequence[LayerError]) -> Plot | None:
    """Plot the relative error of each attention module's output; the worst one stands out."""
    if not any(layer.error for layer in layers):
        return None
    errors = [layer.error for layer in layers]
    worst = errors.index(max(errors))
    description = (
        f"Relative error of each attention output; the largest is {errors[worst]:.3g} in {layers[worst].module}."
    )
    with drawing("layers", description) as plot:
        colours = [BAD if index == worst else CONVERTED for index in range(len(errors))]
        plot.axes.bar(range(len(errors)), errors, color=colours, width=0.7)
        plot.axes.set(xlabel="attention module, first to last", ylabel="relative error of the output")
        plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        mark, place = f"{errors[worst]:.3g}", (worst, errors[worst])
        plot.axes.annotate(mark, place, (0, 3), textcoords="offset points", ha="center", color=MUTED, fontsize=9.5)
    return Plot("Error by layer", f"Largest in {layers[worst].module}.", plot.svg)


def divergence(kl: Divergence, limit: float) -> Plot | None:
    """Plot how many tokens have which KL divergence, with the mean, the 99th percentile and the limit.

    Nothing is plotted where all are zero, or none is a number.
    """
    if not kl.largest or not any(kl.counts):
        return None
    description = f"Histogram of the KL divergence; mean {kl.mean:.3g}, 99th percentile {kl.p99:.3g} nats a token."
    with drawing("kl", description) as plot:
        widths = [right - left for left, right in pairwise(kl.edges)]
        plot.axes.bar(kl.edges[:-1], kl.counts, widths, align="edge", color=CONVERTED, linewidth=0)
        plot.axes.set_xscale("log")
        plot.axes.set(xlabel="KL divergence (nats a token)", ylabel="tokens")
        plot.axes.set_xlim(_filled(kl, limit))
        plot.axes.xaxis.set_major_locator(LogLocator(numticks=7))
        plot.axes.xaxis.set_major_formatter("{x:g}")
        for value, name, style in ((kl.mean, "mean", "-"), (kl.p99, "99 %", "--"), (limit, "limit", ":")):
            if kl.edges[0] <= value <= kl.edges[-1]:
                plot.axes.axvline(value, color=BAD if name == "limit" else INK, linestyle=style, lw=1.4, label=name)
        legend(plot.axes)
    caption = f"Mean {kl.mean:.3g}, 99th percentile {kl.p99:.3g}, largest {kl.largest:.3g} nats a token."
    return Plot("KL divergence of the next token", caption, plot.svg)


def cache_by_context(load: LoadLevel) -> Plot | None:
    """Plot the cache of one sequence against the context length, for both models."""
    uses = {"original": load.original_cache, "converted": load.converted_cache}
    known = {name: use for name, use in uses.items() if use and any(use.at.values())}
    if not known:
        return None
    contexts = sorted({context for use in known.values() for context in use.at})
    ends = ", ".join(f"{format_size(use.at[max(use.at)])} {name}" for name, use in known.items())
    with drawing("cache", f"Cache against the context length; at {contexts[-1]:,} tokens {ends}.") as plot:
        for name, style, colour in (("original", "o-", ORIGINAL), ("converted", "s-", CONVERTED)):
            if name in known:
                plot.axes.plot(list(known[name].at), list(known[name].at.values()), style, color=colour, label=name)
        plot.axes.set_xscale("log", base=2)
        plot.axes.set_yscale("log", base=2)
        plot.axes.set(xlabel="context (tokens)", ylabel="KV cache of one sequence")
        plot.axes.set_xticks(contexts[:: -(-len(contexts) // 8)])
        plot.axes.xaxis.set_major_formatter(
            lambda tokens, _: f"{tokens / 1024:g}k" if tokens >= 1024 else f"{tokens:g}"
        )
        plot.axes.yaxis.set_major_formatter(lambda size, _: format_size(int(size)))
        legend(plot.axes)
    caption = (
        f"At {contexts[-1]:,} tokens, in {load.dtype}: {ends}. Computed; the load level measures the bytes of a token."
    )
    return Plot("Cache against context length", caption, plot.svg)


def similarity_map(one: Similarity, number: int, largest: float) -> Plot:
    """Plot the similarity of the heads of one attention module, ordered by group, a frame around each group.

    Args:
        one: The similarities.
        number: Of the map on the page.
        largest: The similarity, in absolute value, that gets the full colour; that of a head with itself is left out.
    """
    order = list(dict.fromkeys(head for group in one.groups for head in group))
    image = [[(0.0, 0.0, 0.0, 0.0) if a == b else _colour(one.values[a][b] / largest) for b in order] for a in order]
    groups = "; ".join(" ".join(map(str, group)) for group in one.groups)
    description = f"Similarity of the KV heads of {one.module}, by group: {groups}."
    with drawing(f"similarity{number}", description, width=2.2, height=2.2) as plot:
        plot.axes.imshow(image, interpolation="nearest")
        plot.axes.grid(visible=False)
        start = 0
        for group in one.groups:
            corner = (start - 0.5, start - 0.5)
            frame = Rectangle(corner, len(group), len(group), fill=False, edgecolor=INK, linewidth=1.6, clip_on=False)
            plot.axes.add_patch(frame)
            start += len(group)
        ticks = range(len(order)) if len(order) <= _NAMED_HEADS else ()
        plot.axes.set_xticks(ticks, [str(order[index]) for index in ticks])
        plot.axes.set_yticks(ticks, [str(order[index]) for index in ticks])
        plot.axes.tick_params(length=0, labelsize=9)
        plot.axes.spines[:].set_visible(True)
    return Plot(one.module, "", plot.svg)


def _filled(kl: Divergence, limit: float) -> tuple[float, float]:
    """Return the range of the bins that are not empty, widened to the limit where it lies on the axis."""
    filled = [index for index, count in enumerate(kl.counts) if count]
    low, high = kl.edges[filled[0]], kl.edges[filled[-1] + 1]
    return (min(low, limit), max(high, limit)) if kl.edges[0] <= limit <= kl.edges[-1] else (low, high)


def _colour(share: float) -> tuple[float, float, float, float]:
    """Return blue for a positive and orange for a negative share of the largest; transparent at 0."""
    return (*(_BLUE if share > 0 else _ORANGE), min(1.0, abs(share)))
