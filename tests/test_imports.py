"""Imports run one way, nothing heavy loads before it is needed, every module says what it is, and one module prints.

Read from the source text with `ast`: imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from mha2gqa.cli import VERBS

PACKAGE = Path(__file__).parents[1] / "mha2gqa"
LAYERS = (
    "errors progress rates",
    "terminal units",
    "options sections",
    "console",
    "shipped",
    "heads",
    "methods reference",
    "families",
    "files",
    "model",
    "hosts engines",
    "texts",
    "targets",
    "record",
    "refine",
    "pages",
    "verbs.options",
    "verbs.convert verbs.inspect",
    "verbs.expand verbs.export",
    "verbs.verify",
    "verbs.uptrain verbs.bench",
    "verbs.sweep",
    "verbs.demo",
    "cli",
    "__main__",
)
"""Folders, lowest first: one imports from those before it, and from itself."""
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "rich",
    "safetensors",
    "huggingface_hub",
    "yaml",
    "datasets",
    "matplotlib",
    "peft",
    "accelerate",
    "jinja2",
)

RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts.split()}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
API = "mha2gqa"
"""The package itself: the public names, which it fetches from above when they are used."""


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the modules that a tree imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in TREES else str(node.module) for name in names)


OWN = {name: {other for other in imported(tree) if other in TREES} for name, tree in TREES.items()}


def part(module: str) -> str:
    """Return the folder that a module lies in; each verb is one."""
    names = module.split(".")
    return ".".join(names[1:3]) if names[1] == "verbs" else names[1]


def test_every_module_has_a_layer() -> None:
    assert {part(name) for name in TREES if name not in (API, f"{API}.verbs")} == RANK.keys()


@pytest.mark.parametrize("module", [name for name in TREES if name not in (API, f"{API}.verbs")])
def test_imports_run_one_way(module: str) -> None:
    upward = {
        other
        for other in OWN[module] - {API}
        if part(other) != part(module) and RANK[part(other)] >= RANK[part(module)]
    }
    assert not upward, f"{module} imports {sorted(upward)}, which do not lie below it"
    assert API not in OWN[module], "the public names are for users"


def test_no_modules_import_one_another_in_a_circle() -> None:
    TopologicalSorter({module: others for module, others in OWN.items() if module != API}).prepare()


@pytest.mark.parametrize("statement", ["import mha2gqa", "import mha2gqa.cli", "from mha2gqa.cli import app; app()"])
def test_nothing_heavy_is_loaded_for_help(statement: str) -> None:
    script = f"""
import sys
sys.argv = ["mha2gqa", "convert", "--help"]
try:
    {statement}
except SystemExit:
    pass
loaded = [name for name in {HEAVY} if name in sys.modules]
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_convert_reads_little() -> None:
    """By streaming it needs neither what runs a model nor what reads text; who follows it has less to read."""
    script = (
        "import sys, mha2gqa.verbs.convert.run; print(*(name for name in sys.modules if name.startswith('mha2gqa')))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = [TREES[name] for name in result.stdout.split()]
    assert not {"mha2gqa.refine.refine", "mha2gqa.texts.find"} & {*result.stdout.split()}
    assert len(loaded) <= 80
    assert sum(max(node.end_lineno or 0 for node in tree.body) for tree in loaded) <= 9000


@pytest.mark.parametrize("module", TREES)
def test_functions_are_short(module: str) -> None:
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


@pytest.mark.parametrize("module", TREES)
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(TREES[module])
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize("module", sorted(TREES.keys() - {"mha2gqa.console"}))
def test_only_the_console_prints(module: str) -> None:
    assert not {name for name in imported(TREES[module]) if name.split(".")[0] == "rich"}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write")


def test_only_the_command_line_has_it_print() -> None:
    users = {module for module, others in OWN.items() if "mha2gqa.console" in others}
    assert users == {"mha2gqa.cli", *(f"mha2gqa.verbs.{verb}.command" for verb in VERBS)}
