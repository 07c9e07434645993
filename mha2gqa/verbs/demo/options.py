"""What can be asked of `demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mha2gqa.options import Option, Options


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """Run a short tour on the bundled reference checkpoint."""

    directory: Annotated[Path, Option("Where the converted checkpoints go.", is_argument=True)] = Path("demo")
    """Directory of the results; earlier ones are replaced."""
    tokens: Annotated[int, Option("Tokens of held-out text to evaluate on.")] = 50_000
