"""Proves that a change of the code has left every output as it was: runs an old version and this one, and compares.

    python scripts/compare_outputs.py --old COMMIT                  # all cases; exit code 1 on any difference
    python scripts/compare_outputs.py --old COMMIT --work DIR       # keeps inputs and what the old code did in DIR,
                                                                    # so that the next run runs the new code alone
    python scripts/compare_outputs.py --old COMMIT --only 'family/*' --only 'reference/*'
    python scripts/compare_outputs.py --old COMMIT --checkpoints DIR

Both versions run the same command lines (`compare_cases.py`) on the same inputs (`compare_inputs.py`), one process at a
time, on one thread, at the same paths. What is recorded is in `compare_driver.py`, what may differ in
`compare_records.py`. Nothing is assumed of the code but the entry `mha2gqa.cli.main`, and of the tests but the helpers
that make tiny checkpoints, which only the first run needs. Five minutes or so for each version.
"""

import fcntl
import fnmatch
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from compare_cases import all_cases
from compare_records import Texts, differences

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "transformers", "safetensors", "numpy", "datasets", "peft", "accelerate", "typer", "rich")

Manifest = dict[str, Any]


class Work:
    """The folder of a comparison: inputs, what each version did, and where both run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.inputs, self.code, self.run = (self.folder / name for name in ("inputs", "code", "run"))

    def results(self, side: str) -> Path:
        """Return where a side's manifest is, `old` or `new`."""
        return self.folder / side

    def manifest(self, side: str) -> Manifest:
        """Return a side's manifest, an empty one where there is none."""
        path = self.results(side) / "manifest.json"
        return dict(json.loads(path.read_text())) if path.exists() else {"cases": {}}

    def environment(self, code: Path) -> dict[str, str]:
        """Return what a process that runs some code may see."""
        own = {name: str(self.folder / "home" / name) for name in ("HOME", "HF_HOME", "MPLCONFIGDIR", "TMPDIR")}
        for place in own.values():
            Path(place).mkdir(parents=True, exist_ok=True)
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE"), "1")
        quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
        plain = {"LANG": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "120", "PYTHONHASHSEED": "0"}
        fixed = {"PATH": os.environ["PATH"], "PYTHONPATH": str(code), "CUDA_VISIBLE_DEVICES": ""}
        return own | single | quiet | plain | fixed

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other comparisons out, which would run at the same paths."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Give a worktree of a commit, for as long as the block runs."""
    git = str(shutil.which("git"))
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        options = {"cwd": ROOT, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([git, "worktree", "add", "--detach", str(tree), commit], **options)  # type: ignore[call-overload]
        try:
            yield tree
        finally:
            subprocess.run([git, "worktree", "remove", "--force", str(tree)], **options)  # type: ignore[call-overload]


def full_name(commit: str) -> str:
    """Return the whole checksum of a commit."""
    command = [str(shutil.which("git")), "rev-parse", f"{commit}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def run_script(name: str, arguments: list[Path], environment: Mapping[str, str], folder: Path) -> None:
    """Run a script that stands beside this one, and show the lines that it prints as it goes."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    with subprocess.Popen(command, env=dict(environment), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        for number, line in enumerate(process.stdout or (), 1):
            if number % 25 == 0:
                typer.echo(f"  {line.rstrip()}")
    if process.returncode:
        raise typer.BadParameter(f"{name} ended with exit code {process.returncode}")


def make_inputs(work: Work, tree: Path) -> None:
    """Make the inputs, with the helpers of the tests that stand beside this script."""
    typer.echo("making inputs")
    run_script("compare_inputs.py", [work.inputs, tree], work.environment(ROOT), work.folder)


def checksum(folder: Path) -> str:
    """Return a checksum of all files below a folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(str(path.relative_to(folder)).encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def place_code(tree: Path, target: Path) -> None:
    """Copy the package of a tree to the place where every version runs, so that paths in outputs are the same."""
    shutil.rmtree(target, ignore_errors=True)
    package = next(path for path in (tree / "src/mha2gqa", tree / "mha2gqa") if path.is_dir())
    shutil.copytree(package, target / "mha2gqa", ignore=shutil.ignore_patterns("__pycache__"))
    for path in target.rglob("*"):
        os.utime(path, (1e9, 1e9))


def run_side(work: Work, side: str, tree: Path, cases: dict[str, Any]) -> Manifest:
    """Run cases with the code of a tree, and return its manifest of them."""
    typer.echo(f"running {len(cases)} cases with the {side} code")
    place_code(tree, work.code)
    for place in (work.run, work.folder / "home"):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    todo = work.folder / "cases.json"
    todo.write_text(json.dumps(cases))
    work.results(side).mkdir(exist_ok=True)
    run_script("compare_driver.py", [todo, work.results(side), work.run], work.environment(work.code), work.run)
    made = work.manifest(side)
    if not Path(made["code"]).is_relative_to(work.code):
        raise typer.BadParameter(f"the {side} code was imported from {made['code']}")
    return made


def old_side(work: Work, tree: Path, about: dict[str, Any], cases: dict[str, Any]) -> Manifest:
    """Return the manifest of the old code; what an earlier run recorded of the same is not run again."""
    kept = work.manifest("old")
    if kept.get("about") != about:
        shutil.rmtree(work.results("old"), ignore_errors=True)
        kept = {"about": about, "cases": {}}
    todo = {name: one for name, one in cases.items() if kept["cases"].get(name, {}).get("case") != one}
    if todo:
        kept["cases"] |= run_side(work, "old", tree, todo)["cases"]
        (work.results("old") / "manifest.json").write_text(json.dumps(kept))
    return kept


def circumstances(commit: str, work: Work) -> dict[str, Any]:
    """Return what the old manifest depends on: commit, inputs, versions, machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line for line in lines if line.startswith("model name")), platform.processor())
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return {"commit": commit, "inputs": checksum(work.inputs), "processor": processor, "versions": versions}


def summary(cases: dict[str, Any], old: Manifest, work: Work) -> Iterator[str]:
    """Yield what was compared, as lines."""
    steps = [step for name in cases for step in old["cases"][name]["steps"]]
    files = [file for step in steps for file in step.get("files", {}).values()]
    models = json.loads((work.inputs / "catalogue.json").read_text())
    covered = {one["type"] for one in models for kind in [one["kind"]] if f"{kind}/{one['type']}" in cases}
    kinds = Counter(name.partition("/")[0] for name in cases)
    codes = sorted(Counter(str(step.get("code")) for step in steps).items())
    took = {name: sum(step.get("seconds", 0) for step in old["cases"][name]["steps"]) for name in cases}
    most = sorted(took, key=lambda name: -took[name])[:5]
    yield f"cases: {len(cases)} ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
    yield f"command lines: {len(steps)} (by exit code: {', '.join(f'{code}: {count}' for code, count in codes)})"
    yield f"model types: {len(covered)}, checkpoints of them: {sum(one['type'] in covered for one in models)}"
    yield f"files: {len(files):,}, {sum(file['size'] for file in files):,} bytes"
    slowest = ", ".join(f"{name} {took[name]:.0f}" for name in most)
    yield f"seconds of the processor: {sum(took.values()):.0f}, the most in {slowest}"


def compare(cases: dict[str, Any], sides: tuple[Manifest, Manifest], work: Work) -> list[str]:
    """Return every difference."""
    texts = Texts(work.results("old")), Texts(work.results("new"))
    pairs = ((name, sides[0]["cases"][name], sides[1]["cases"][name]) for name in cases)
    return [text for name, old, new in pairs for text in differences(name, old, new, texts)]


def selected(work: Work, checkpoints: list[Path], only: list[str]) -> dict[str, Any]:
    """Return the cases that were asked for, by name."""
    found = [path.parent.resolve() for folder in checkpoints for path in sorted(folder.glob("*/config.json"))]
    cases = {case.name: case.to_json(work.inputs) for case in all_cases(work.inputs, found)}
    return {name: one for name, one in cases.items() if any(fnmatch.fnmatch(name, pattern) for pattern in only)}


def run(work: Work, old: str, new: Path, checkpoints: list[Path], only: list[str]) -> list[str]:
    """Run what has to be run, print what was compared, and return the differences."""
    commit = full_name(old)
    with work.locked(), tree_of(commit) as tree:
        if not (work.inputs / "catalogue.json").exists():
            make_inputs(work, tree)
        cases = selected(work, checkpoints, only)
        before = old_side(work, tree, circumstances(commit, work), cases)
        shutil.rmtree(work.results("new"), ignore_errors=True)
        after = run_side(work, "new", new, cases)
        found = compare(cases, (before, after), work)
        for line in summary(cases, before, work):
            typer.echo(line)
    return found


def main(
    old: Annotated[str, typer.Option(help="Commit whose outputs are right.")],
    new: Annotated[Path, typer.Option(help="Tree to hold against it.")] = ROOT,
    work: Annotated[Path | None, typer.Option(help="Folder to keep, for later runs. Default: a temporary one.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Names of cases, with wildcards; repeatable.")] = None,
    checkpoints: Annotated[list[Path] | None, typer.Option(help="Folder of further checkpoints; repeatable.")] = None,
) -> None:
    """Run two versions of the code on the same inputs, and print every difference between their outputs."""
    with tempfile.TemporaryDirectory() as temporary:
        found = run(Work(work or Path(temporary)), old, new.resolve(), checkpoints or [], only or ["*"])
    for text in found:
        typer.echo(text)
    typer.echo(f"{len(found)} differences" if found else "no difference")
    raise typer.Exit(1 if found else 0)


if __name__ == "__main__":
    typer.run(main)
