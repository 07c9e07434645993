"""The command line: typer signatures only, a module a command; the options as types are in `arguments.py`.

Heavy imports stay inside the command bodies.

Exit codes: 0 done, 1 refused (one message on stderr), 2 wrong usage, 3 verify found the checkpoint different,
130 interrupted.
"""

import os
import sys

from mha2gqa.cli import bench, convert, demo, expand, inspect, sweep, uptrain, verify
from mha2gqa.cli.app import app
from mha2gqa.errors import KEPT, Interrupted, Mha2GqaError

__all__ = ["app", "bench", "convert", "demo", "expand", "inspect", "main", "sweep", "uptrain", "verify"]


def main() -> None:
    """Run the command line; a refusal is one message and exit code 1, a bug keeps its traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries; read when tqdm is imported
    try:
        app()
    except Mha2GqaError as error:
        from mha2gqa.console.terminal import print_error

        if os.environ.get("LOCAL_RANK", "0") == "0":  # a launcher's other processes refuse for the same reason
            print_error(str(error))
        sys.exit(1)
    except SystemExit as ending:
        if ending.code == 130:  # typer turns Ctrl-C into this
            from mha2gqa.console.terminal import print_error

            kept = _kept(ending)
            print_error(f"Interrupted. {KEPT.format(kept)}." if kept else "Interrupted; nothing was left behind.")
        raise


def _kept(error: BaseException | None) -> str:
    """Return where the layers of an interrupted run stay, by what typer has made of the interruption."""
    while error is not None:
        if isinstance(error, Interrupted):
            return error.kept
        error = error.__cause__ or error.__context__
    return ""
