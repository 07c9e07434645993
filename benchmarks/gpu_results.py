"""The tables of `gpu.py`, in Markdown: what was found, and why the rest is missing."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import uptrain

Found: TypeAlias = dict[str, Any]
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "B200": 2250e12}
"""FLOP/s in bf16 without sparsity by the makers' data sheets, by what a device's name contains."""


def format_tables(known: Found) -> str:
    """Return what was found, in Markdown."""
    parts: dict[str, Found] = known["parts"]
    lines = [f"## {known.get('name', known['device'])}", "", "| rate | |", "|---|---|"]
    lines += [f"| {name} | {value:.3g} |" for name, value in _numbers(parts.get("rates", {}))]
    lines += ["", "| one layer of 7B | s | peak GB |", "|---|---|---|"]
    lines += [
        f"| {name} | {one['seconds']:.4f} | {one['peak'] / 1e9:.2f} |" for name, one in _dicts(parts.get("layer", {}))
    ]
    lines += ["", "| reference, aligned and distilled on | nats lost | error of each layer |", "|---|---|---|"]
    for name, one in _dicts(parts.get("agreement", {})):
        errors = ", ".join(f"{errors['distil']:.4f}" for errors in one["layers"].values())
        lines.append(f"| {name} | {one['loss']:.4f} | {errors} |")
    runs = {
        name.removeprefix("uptrain, "): [one] for name, one in parts.items() if name[:8] == "uptrain," and "step" in one
    }
    if "plain Trainer" in runs:
        peak = next((value for name, value in PEAKS.items() if name in known.get("name", "")), None)
        lines += ["", uptrain.format_table(runs, peak)]
    rows = [(name, one["report"]) for name, one in parts.items() if "report" in one]
    lines += ["", "| decode | batch | context | ms | converted | ratio | of its limit | TB/s | largest batch |"]
    lines += ["|---" * 9 + "|", *(line for name, report in rows for line in _decoded(name, report))]
    lines += ["", *(f"{name}: {one['failed'].splitlines()[-1]}" for name, one in parts.items() if "failed" in one)]
    return "\n".join(lines)


def _numbers(found: Found) -> list[tuple[str, float]]:
    return [(name, value) for name, value in found.items() if isinstance(value, float) and name != "took"]


def _dicts(found: Found) -> list[tuple[str, Found]]:
    return [(name, value) for name, value in found.items() if isinstance(value, dict)]


def _decoded(name: str, report: Found) -> Iterator[str]:
    fits = {fit["context"]: fit["tried"] for fit in report["fits"]}
    for row in report["decode"]:
        ratio, tried = row["ratio"]["median"], fits[row["context"]]
        times = " | ".join(f"{1e3 * row[side]['median']:.2f}" for side in ("original", "converted"))
        moved = " -> ".join(f"{one / 1e12:.2f}" for one in row["bytes_per_second"])
        largest = " -> ".join(map(str, tried)) if tried else "-"
        yield (
            f"| {name.removeprefix('bench, ')} | {row['batch']} | {row['context']} | {times} | {ratio:.2f} | "
            f"{ratio / row['limit']:.0%} | {moved} | {largest} |"
        )
