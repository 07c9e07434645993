"""A small Hub on loopback: serves local directories as models and data sets to a real huggingface_hub.

    with HubServer() as server:
        commit = server.add("org/name", directory, revision="main")
        server.connect(monkeypatch, tmp_path)           # this process, or
        subprocess.run(..., env=server.environment(tmp_path))
        server.fetched()                                # the files whose bytes were sent

Endpoints, headers and error codes are those that `snapshot_download`, `model_info` and
`get_safetensors_metadata` use. Weights come from the Hub itself, where the real one redirects to a content
network; there is no Xet, no paging, and no login but for what `hub_uploads.py` takes.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import pytest

from tests.hub_uploads import Uploads

API = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?")
FILE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    file: str | None  # the file of the repository, for a request of its bytes
    status: int
    sent: int  # bytes of the body


@dataclass
class Repository:
    gated: bool = False
    private: bool = False
    directories: dict[str, Path] = field(default_factory=dict)  # by commit
    revisions: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    file: str | None = None


class HubServer(Uploads):
    def __init__(self) -> None:
        self._kept = tempfile.TemporaryDirectory()
        super().__init__(Path(self._kept.name))
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.down = False
        """Answer everything with 503."""
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._httpd.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._httpd.shutdown()
        self._httpd.server_close()
        self._kept.cleanup()

    def add(self, repo_id: str, directory: Path, *, revision: str = "main", gated: bool = False) -> str:
        """Serve a directory as one revision of a repository and return its commit."""
        repository = self.repositories.setdefault(repo_id, Repository())
        repository.gated = gated
        commit = _git_hash("".join(file["oid"] + file["path"] for file in _tree(directory)).encode())
        repository.directories[commit] = directory
        repository.revisions[revision] = commit
        return commit

    def fetched(self) -> set[str]:
        """The files of which bytes were sent."""
        return {request.file for request in self.requests if request.file and request.sent}

    def connect(self, monkeypatch: pytest.MonkeyPatch, home: Path, *, url: str = "", offline: bool = False) -> None:
        """Point this process at this server (or at `url`), with an own cache and no account."""
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session

        monkeypatch.setattr(constants, "ENDPOINT", url or self.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", (url or self.url) + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if self.token:
            monkeypatch.setenv("HF_TOKEN", self.token)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        close_session()  # a client made earlier has read the proxy settings of its time

    def environment(self, home: Path, *, offline: bool = False) -> dict[str, str]:
        """The same for a child process."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
        ours |= {"HF_HUB_DISABLE_XET": "1"} | ({"HF_TOKEN": self.token} if self.token else {})
        return inherited | ours | {"NO_PROXY": "127.0.0.1"}

    def answer(self, path: str, span: str | None, token: str | None = None) -> Answer:
        """Answer a GET or HEAD of a quoted path, with the Range and Authorization headers if there are some."""
        if self.down:
            return _refusal(503, "", "Service Unavailable")
        if path == "/api/whoami-v2":
            known = self.token is not None and token == f"Bearer {self.token}"
            return _json({"type": "user", "name": "someone"}) if known else _refusal(401, "", "Invalid user token.")
        if api := API.fullmatch(path):
            return self._information(api[1], api[2], unquote(api[3] or "main"), unquote(api[4] or ""))
        if file := FILE.fullmatch(path):
            return self._file(file[1], unquote(file[2]), unquote(file[3]), span)
        return _refusal(404, "", "Not Found")

    def _serve(self, name: str, folder: Path) -> str:
        return self.add(name, folder)

    def _find(self, repo_id: str, revision: str) -> tuple[str, Path] | Answer:
        if not (repository := self.repositories.get(repo_id)):
            return _refusal(401, "RepoNotFound", "Invalid username or password.")
        commit = repository.revisions.get(revision, revision)
        if not (directory := repository.directories.get(commit)):
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, directory

    def _information(self, repo_id: str, kind: str | None, revision: str, folder: str) -> Answer:
        if isinstance(found := self._find(repo_id, revision), Answer):
            return found
        commit, directory = found
        tree = [file for file in _tree(directory) if file["path"].startswith(folder)]
        if folder and not tree:
            return _refusal(404, "EntryNotFound", f"{folder} does not exist")
        siblings = [{"rfilename": file["path"]} for file in tree]
        gated = "manual" if self.repositories[repo_id].gated else False
        private = self.repositories[repo_id].private
        info = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit, "private": private, "gated": gated}
        content = tree if kind == "tree" else info | {"siblings": siblings}
        return _json(content)

    def _file(self, repo_id: str, revision: str, name: str, span: str | None) -> Answer:
        if isinstance(found := self._find(repo_id, revision), Answer):
            return found
        if self.repositories[repo_id].gated:
            return _refusal(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        commit, directory = found
        file = next((file for file in _tree(directory) if file["path"] == name), None)
        if file is None:
            return _refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = (directory / name).read_bytes()
        etag = file["lfs"]["oid"] if "lfs" in file else file["oid"]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if not span:
            return Answer(200, data, headers, name)
        start, end = RANGE.fullmatch(span).groups()
        part = data[int(start) : int(end) + 1 if end else None]
        if not part:
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
        whole = f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}"
        return Answer(206, part, headers | {"Content-Range": whole}, name)


def _json(content: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _tree(directory: Path) -> list[dict]:
    return [
        _entry(path, path.relative_to(directory).as_posix()) for path in sorted(directory.rglob("*")) if path.is_file()
    ]


def _entry(path: Path, name: str) -> dict:
    data = path.read_bytes()
    entry = {"type": "file", "path": name, "size": len(data)}
    entry["oid"] = _git_hash(b"blob %d\0" % len(data) + data)
    if path.suffix in {".safetensors", ".bin", ".pth", ".gguf"}:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    headers = (headers or {}) | {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            answer = server.answer(path, self.headers.get("Range"), self.headers.get("Authorization"))
            self._send(answer, b"" if self.command == "HEAD" else answer.body)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            body = self._body()
            status, content = server.receive(self.command, path, self.headers.get("Authorization"), body)
            answer = _json(content, status)
            self._send(answer, answer.body)

        do_PUT = do_POST

        def _send(self, answer: Answer, body: bytes) -> None:
            # Before the answer leaves, so that a client that has it finds the request recorded.
            path = urlsplit(self.path).path
            server.requests.append(Request(self.command, path, answer.file, answer.status, len(body)))
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            if length := self.headers.get("Content-Length"):
                return self.rfile.read(int(length))
            parts = []
            while size := int(self.rfile.readline(), 16):  # sent in chunks
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, *args: object) -> None:
            pass

    return Handler
