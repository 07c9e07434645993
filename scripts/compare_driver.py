"""Runs cases with one version of the code and records what each did: the process that `compare_outputs.py` starts.

    python scripts/compare_driver.py CASES RESULTS RUN    # PYTHONPATH names the code

CASES is a JSON file of cases by name (see `Case.to_json`). Into the folder RESULTS go `manifest.json`, the record of
each case, and `texts/`, what the manifest names by checksum: outputs, text files, and the list of tensors of each file
of weights. Cases run below the folder RUN, each in a fork of this process that has imported everything, so that none
knows of another; only one runs at a time. Of the code that is run, only `mha2gqa.cli.main` is named here.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_FRESH = "import sys; sys.argv[0] = 'mha2gqa'; from mha2gqa.cli import main; main()"
_LARGE = 1 << 22
"""Bytes of a file above which its text is not kept."""
_LIBRARIES = (
    "accelerate",
    "datasets",
    "jinja2",
    "matplotlib.font_manager",
    "matplotlib.figure",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "typer._coercion",
)


class Recorder:
    """Keeps texts by their checksum."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "texts"

    def keep(self, text: str) -> str:
        """Keep a text and return its name."""
        content = text.encode("utf-8", "surrogateescape")
        name = hashlib.sha256(content).hexdigest()
        path = self._folder / name[:2] / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return name

    def file(self, path: Path) -> dict[str, Any]:
        """Return the record of a file: checksum, size, and the name of its text, if it has one."""
        with path.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        record: dict[str, Any] = {"sha256": checksum, "size": path.stat().st_size}
        if (text := _text(path)) is not None:
            record["text"] = self.keep(text)
        return record


def _text(path: Path) -> str | None:
    """Return what a file says to people; None where it is binary."""
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.stat().st_size > _LARGE:
        return None
    content = path.read_bytes()
    return None if b"\0" in content else content.decode("utf-8", "surrogateescape")


def _tensors(path: Path) -> str:
    """Return a line for each tensor of a safetensors file, with a checksum, and one for its metadata."""
    lines = []
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        for name, entry in sorted(header.items()):
            if name == "__metadata__":
                lines.append(f"metadata {entry}")
                continue
            first, last = entry["data_offsets"]
            stream.seek(8 + length + first)
            checksum = hashlib.sha256(stream.read(last - first)).hexdigest()[:16]
            lines.append(f"{name} {entry['dtype']} {entry['shape']} {checksum}")
    return "\n".join(lines)


def run_case(case: Mapping[str, Any], place: Path, recorder: Recorder) -> list[dict[str, Any]]:
    """Run the steps of a case in a folder, and return the record of each."""
    place.mkdir(parents=True)
    for name, text in case["files"].items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    os.chdir(place)
    seen = _scan(place)
    records = []
    for number, arguments in enumerate(case["steps"], 1):
        started = sum(os.times()[:4])
        fresh = case["fresh"] and number == len(case["steps"])
        record = _run_step(arguments, fresh=fresh, captured=place.with_name("captured"), recorder=recorder)
        now = _scan(place)
        changed = {name: recorder.file(place / name) for name in now if now[name] != seen.get(name)}
        record |= {"files": changed, "removed": sorted(seen.keys() - now.keys())}
        records.append({"arguments": arguments} | record | {"seconds": sum(os.times()[:4]) - started})
        seen = now
    return records


def _scan(place: Path) -> dict[str, tuple[int, int, int]]:
    """Return name and state of every file below a folder."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_file() and not path.is_symlink():
            state = path.stat()
            found[str(path.relative_to(place))] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def _run_step(arguments: list[str], *, fresh: bool, captured: Path, recorder: Recorder) -> dict[str, Any]:
    """Run a command line; both streams go into files, whoever writes to them."""
    captured.mkdir(exist_ok=True)
    streams = {name: captured / name for name in ("out", "err")}
    code, failure = _start(arguments, streams) if fresh else _call(arguments, streams)
    texts = {
        name: recorder.keep(file.read_bytes().decode("utf-8", "surrogateescape")) for name, file in streams.items()
    }
    return {"code": code, "failure": failure, **texts}


def _call(arguments: list[str], streams: Mapping[str, Path]) -> tuple[Any, str]:
    """Call the entry in this process, which `sys.argv` and both streams are taken from until it ends."""
    from mha2gqa.cli import main

    sys.argv = ["mha2gqa", *arguments]
    _redirect(streams)
    try:
        main()
    except SystemExit as ending:
        return ending.code, ""
    except BaseException as error:  # whatever it is, it is recorded
        return None, f"{type(error).__module__}.{type(error).__qualname__}: {error}"
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0, ""


def _redirect(streams: Mapping[str, Path]) -> None:
    for name, number in (("out", 1), ("err", 2)):
        with streams[name].open("wb") as file:
            os.dup2(file.fileno(), number)


def _start(arguments: list[str], streams: Mapping[str, Path]) -> tuple[Any, str]:
    """Start a Python of its own, with none of the settings that spare this one bars and warnings."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY")
    }
    with streams["out"].open("wb") as out, streams["err"].open("wb") as err:
        command = [sys.executable, "-c", _FRESH, *arguments]
        return subprocess.run(command, stdout=out, stderr=err, env=environment, check=False).returncode, ""


def run_apart(case: Mapping[str, Any], run: Path, recorder: Recorder) -> list[dict[str, Any]]:
    """Run a case in a fork of this process, and clear its folder away."""
    result = run / "result.json"
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            torch.manual_seed(0)
            records = run_case(case, run / "case", recorder)
            result.write_text(json.dumps(records))
        except BaseException as error:
            result.write_text(json.dumps([{"failure": f"the driver failed: {error!r}"}]))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    records = json.loads(result.read_text()) if result.exists() else [{"failure": f"died with status {status}"}]
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return list(records)


def import_everything() -> str:
    """Import the code and what it imports, so that cases need not; returns where the code is."""
    package = importlib.import_module("mha2gqa.cli")
    for name in _LIBRARIES:
        importlib.import_module(name)
    root = importlib.import_module("mha2gqa")
    for module in pkgutil.walk_packages(root.__path__, "mha2gqa."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(Exception):  # an engine that is not installed, say
                importlib.import_module(module.name)
    with contextlib.suppress(Exception):  # a thousand regular expressions, which each fork would compile
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    gc.collect()
    gc.freeze()  # forks do not copy what the collector would otherwise touch
    return str(package.__file__)


def main(cases: Path, results: Path, run: Path) -> None:
    """Run all cases, and write the manifest."""
    torch.set_num_threads(1)
    recorder = Recorder(results)
    manifest: dict[str, Any] = {"code": import_everything(), "cases": {}}
    todo = json.loads(cases.read_text())
    for number, (name, case) in enumerate(todo.items(), 1):
        started = time.monotonic()
        records = run_apart(case, run, recorder)
        manifest["cases"][name] = {"case": case, "steps": records}
        sys.stdout.write(f"{number}/{len(todo)} {name} {time.monotonic() - started:.1f} s\n")
    (results / "manifest.json").write_text(json.dumps(manifest))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
