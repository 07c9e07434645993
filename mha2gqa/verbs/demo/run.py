"""`mha2gqa demo`: the tool on the reference checkpoint, from inspection to what a conversion cost, and a proof."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mha2gqa.progress import Progress
from mha2gqa.texts.blocks import held_out_loss
from mha2gqa.verbs.convert.options import ConvertOptions, Refinement
from mha2gqa.verbs.convert.run import convert
from mha2gqa.verbs.inspect.options import InspectOptions
from mha2gqa.verbs.inspect.run import inspect
from mha2gqa.verbs.uptrain.options import UptrainOptions
from mha2gqa.verbs.uptrain.outcome import UptrainReport
from mha2gqa.verbs.uptrain.run import uptrain
from mha2gqa.verbs.verify.options import VerifyOptions
from mha2gqa.verbs.verify.outcome import Verification
from mha2gqa.verbs.verify.run import verify

GROUPS = (4, 2, 1)
WAYS: tuple[tuple[str, Refinement | None], ...] = (("mean", None), ("aligned", None), ("aligned", "refit"))
BASELINES: tuple[tuple[str, Refinement | None], ...] = (("first", None), ("random", None))
CALIBRATION = 32_768
"""Tokens of calibration text: enough to show a refinement, and quick."""
UPTRAINED, _MEASURED = 10, 16_384
"""Steps of the uptraining, and tokens that it is measured on at most: enough to show it, and quick."""
_RATE = 3e-3
"""Its learning rate: what a trial chooses here (a held-out loss of 3.35 after three steps; 3.71 at a quarter of it)."""


@dataclass(frozen=True)
class DemoRow:
    """One checkpoint of the result table."""

    name: str
    kv_heads: int
    method: str
    cache_per_token: int
    """Bytes."""
    loss: float
    """Nats per token on the reference's held-out text."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


def measure(directory: Path, tokens: int) -> Iterator[DemoRow]:
    """Convert the reference into `directory`, and yield each result with its held-out loss.

    Args:
        directory: Where the converted checkpoints go; earlier ones are replaced.
        tokens: Tokens of held-out text to evaluate on.
    """
    reference = inspect(InspectOptions())
    source = Path(reference.source)
    yield DemoRow("original", reference.kv_heads, "-", reference.rows[0].bytes_per_token, held_out_loss(source, tokens))
    for groups in GROUPS:
        for method, refine in (*WAYS, *BASELINES) if groups == 1 else WAYS:
            name = method if refine is None else f"{method}-{refine}"
            output = _output(directory, groups, name)
            unread = ("none",) if refine is None and method == "aligned" else ()  # what a refinement reads is beside it
            options = ConvertOptions(
                groups=groups, method=method, refine=refine, data=unread, tokens=CALIBRATION, output=output, force=True
            )
            yield DemoRow(output.name, groups, name, convert(options).cache_after, held_out_loss(output, tokens))


def prove(directory: Path, tokens: int, progress: Progress) -> Verification:
    """Verify the refined GQA-4 that `measure` has made, and write the page.

    Args:
        directory: Where `measure` put it, and where the page goes.
        tokens: Tokens of held-out text to compare the outputs on.
        progress: Told of every run of bytes and every batch of tokens.
    """
    options = VerifyOptions(converted=_output(directory, 4, "aligned-refit"), tokens=tokens, report=directory)
    return verify(options, progress)


def recover(directory: Path, tokens: int, progress: Progress) -> UptrainReport | None:
    """Uptrain the GQA-4 that `measure` has made by the mean, for a short while.

    Args:
        directory: Where `measure` put it, and where the result goes.
        tokens: Tokens of held-out text to measure on, at most.
        progress: Told of the run as it goes.
    """
    converted = _output(directory, 4, "mean")
    options = UptrainOptions(
        converted=converted,
        output=directory / f"{converted.name}-uptrained",
        steps=UPTRAINED,
        held_out_tokens=min(tokens, _MEASURED),
        trainer={"learning_rate": _RATE, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True},
        force=True,
    )
    return uptrain(options, progress)


def _output(directory: Path, groups: int, method: str) -> Path:
    return directory / f"mha2gqa-reference-{groups}-{method}"
