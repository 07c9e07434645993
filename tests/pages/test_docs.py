"""The site that `make docs` builds: links lead somewhere, nothing comes from elsewhere, and it can be read anywhere."""

import functools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.pages.conftest import Browser

ROOT = Path(__file__).parents[2]
SHOWN = ("index.html", "commands/verify.html", "reference/families.html")


def build(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(root / "mkdocs.yml"), "-d", str(output)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("docs") / "site"
    built = build(ROOT, output)
    assert built.returncode == 0, built.stderr
    return output


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_link_that_leads_nowhere_fails(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs/log.md").open("a") as page:
        page.write("\n[gone](gone.md) [gone, too](index.md#gone-too)\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    assert "gone.md" in built.stderr
    assert "#gone-too" in built.stderr


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?([^\" >]+)", page.read_text())
        assert len(loaded) > 3
        assert not [one for one in loaded if re.match(r"(https?:)?//", one)], page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1180])
def test_a_page_fits_its_screen(address: str, browser: Browser, width: int, scheme: str) -> None:
    for page in SHOWN:
        browser.show(f"{address}/{page}", width=width, scheme=scheme)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        sheet = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", sheet)[:3])) < 3 * 128) == (scheme == "dark")
        assert browser.messages() == []
        requests = browser.requests()
        assert len(requests) > 3
        assert all(request.startswith((address, "data:", "blob:")) for request in requests), requests
