"""What can be asked of `sweep`."""

from dataclasses import dataclass
from pathlib import Path

from mha2gqa.verbs.convert.options import Grouping, Refinement


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of `sweep`."""

    model: str | None = None
    """Local directory or Hub id; None is the reference checkpoint."""
    groups: tuple[int, ...] = ()
    """KV heads of the results; empty is every number that the model allows below its own."""
    methods: tuple[str, ...] = ("mean", "aligned")
    """How the KV heads of a group become one: names in `methods.METHODS`."""
    refine: tuple[Refinement | None, ...] = (None,)
    """How far to improve each result on text; None leaves it as it is merged."""
    grouping: Grouping = "contiguous"
    """Which KV heads share a group."""
    data: tuple[str, ...] = ()
    """Text: files, Hub data sets, or `self`. Without `eval_data` it is divided, a fifth of it to evaluate on."""
    eval_data: tuple[str, ...] = ()
    """Text to evaluate on; `data` is then calibration text alone."""
    column: str | None = None
    """Column of tables that holds the text; None takes `text`, else the only one with strings."""
    tokens: int = 262_144
    """Tokens of calibration text, at most."""
    eval_tokens: int = 32_768
    """Tokens to evaluate on, at most."""
    context: int | None = None
    """Tokens of a block of text; None is as many as the model reads, up to 2048."""
    batch_size: int | None = None
    """Blocks that are evaluated at a time; None is as many as 2048 tokens hold, and at least one."""
    steps: int = 300
    """Training steps of each layer (`distil`), and of all together (`joint`)."""
    activation_memory: str = "8GB"
    """Activations of a refinement to hold in memory; the rest goes to disk beside the results."""
    max_ppl_increase: float = 0.01
    """Largest increase of the perplexity that the recommended conversion may have, as a fraction."""
    sensitivity: bool = True
    """Also measure what happens when one layer alone is converted."""
    dtype: str | None = None
    """Dtype to run the models in; None is the checkpoint's own on an accelerator, and float32 on a CPU."""
    device: str | None = None
    """Device to run the models on; None takes an accelerator when there is one."""
    seed: int = 0
    """Seed of everything that draws numbers."""
    output: Path | None = None
    """File of the results, which a later run goes on from; None is `./<name>-sweep.json`."""
    keep: Path | None = None
    """Directory to keep the converted checkpoints in; None keeps none."""
    report: Path | None = None
    """Directory to write the page into, as `report.html`; None writes none."""
    force: bool = False
    """Replace the results of another sweep."""
