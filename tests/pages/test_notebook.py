"""The notebook of the documents runs from its first cell to its last, and prints what it was saved with."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "guides" / "convert.ipynb"


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    scope: dict[str, Any] = {}
    printed = []
    for cell in cells:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec("".join(cell["source"]).replace("tokens=4096", "tokens=1024"), scope)  # noqa: S102 (it is our own)
        printed.append(out.getvalue())
    saved = ["".join(line for output in cell["outputs"] for line in output["text"]) for cell in cells]
    assert printed[:2] == saved[:2]  # sizes; the others hold numbers that a processor rounds in its own way
    assert [len(one.splitlines()) for one in printed] == [len(one.splitlines()) for one in saved]
