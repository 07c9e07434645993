"""The release: a wheel and an sdist with every file, one version, and a wheel that runs where there is no checkout."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import mha2gqa

ROOT = Path(__file__).parents[1]
VERSION = mha2gqa.__version__
PACKAGE = {
    str(file.relative_to(ROOT))
    for file in (ROOT / "mha2gqa").rglob("*")
    if file.is_file() and "__pycache__" not in file.parts
}


def run(*command: object, cwd: Path) -> str:
    """Run without the checkout on the path, and without the network."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHONPATH")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` makes."""
    output = tmp_path_factory.mktemp("dist")
    build = "import sys; from hatchling.cli import hatchling; sys.exit(hatchling())"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", build, "build", "-d", output], cwd=ROOT, env=env, check=True)
    return output


@pytest.mark.slow
def test_the_wheel_has_every_file_and_runs_without_the_checkout(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"mha2gqa-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == PACKAGE
    assert "mha2gqa/py.typed" in names
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean/bin/python"
    (site,) = (tmp_path / "clean/lib").glob("python*/site-packages")
    (site / "installed.pth").write_text("\n".join(one for one in sys.path if "site-packages" in one))
    run(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    tool = tmp_path / "clean/bin/mha2gqa"
    assert run(tool, "--version", cwd=tmp_path) == f"mha2gqa {VERSION}\n"
    assert str(site) in run(python, "-c", "import mha2gqa; print(mha2gqa.__file__)", cwd=tmp_path)
    assert "8 KV heads" in run(tool, "inspect", cwd=tmp_path)
    run(tool, "convert", "-g", "2", "-o", "result", cwd=tmp_path)
    assert (tmp_path / "result/mha2gqa.json").is_file()


@pytest.mark.slow
def test_the_sdist_has_every_file(dist: Path) -> None:
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert PACKAGE | {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= names


def test_the_version_is_said_once() -> None:
    assert re.search(rf"^## {re.escape(VERSION)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert "version =" not in (ROOT / "pyproject.toml").read_text().partition("[tool.hatch")[0].replace("target-", "")


def test_ci_runs_what_a_desk_runs() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["make test PYTHON=python"]
