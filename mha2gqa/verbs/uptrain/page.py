"""An `UptrainReport` as a page: what was won back, the losses by step, and how the run was made.

Words the numbers for `templates/uptrain.html`; nothing is measured here.
"""

from importlib.metadata import version
from pathlib import PurePath

import yaml

from mha2gqa.pages.page import render
from mha2gqa.units import perplexity
from mha2gqa.verbs.uptrain.account import describe_run
from mha2gqa.verbs.uptrain.figures import loss_plot
from mha2gqa.verbs.uptrain.outcome import UptrainReport


def uptrain_page(report: UptrainReport) -> str:
    """Return the page of a run, as HTML that needs no other file."""
    return render(
        "uptrain.html",
        name=PurePath(report.output).name,
        headline=_headline(report),
        summary=describe_run(report),
        losses=_rows(report),
        tokens=report.losses.tokens if report.losses else 0,
        plot=loss_plot(report),
        facts=_facts(report),
        recipe=yaml.safe_dump(dict(report.recipe), sort_keys=False, allow_unicode=True),
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
    facts = {
        "converted checkpoint": report.converted,
        "original": report.original or "not at hand",
        "parameters trained": f"{sizes.get('trained', 0):,} of {sizes.get('all', 0):,}",
        "weights kept": f"of step {report.step}",
        "processes": f"{report.processes} on {report.device}",
        "time": f"{report.seconds or 0:.1f} s, {report.tokens_per_second or 0:,.0f} tokens a second",
    }
    return list(facts.items())
