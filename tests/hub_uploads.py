"""The part of the Hub on loopback (`hub_server.py`) that takes results: account, repositories, large files, commits.

    server.token = "hf_..."                  the one account, `someone`, which may write into `org`
    server.refuses = {b"..."}                large files that hold such bytes are refused, as by a full disk
    server.uploads                           SHA-256 of the large files that were sent, in their order

Endpoints and forms are those of `create_repo` and `upload_folder` without Xet, whose protocol this server does not
speak: large files go by git-lfs, each in one piece, and are known by their SHA-256 from then on.
"""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

LARGE = {".safetensors", ".bin", ".gguf"}
PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/main")
BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/main")


class Uploads:
    """Mixed into the server, which knows repositories and their revisions."""

    url: str
    repositories: dict[str, Any]

    def __init__(self, folder: Path) -> None:
        self.token: str | None = None
        self.refuses: set[bytes] = set()
        self.uploads: list[str] = []
        self._folder = folder
        (folder / "objects").mkdir()

    def receive(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
        """Answer a request that changes something: status and content."""
        if method == "PUT":
            return self._object(path.rpartition("/")[2], body)
        if self.token is None or token != f"Bearer {self.token}":
            return 401, {"error": "Invalid user token."}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if PREUPLOAD.fullmatch(path):
            files = json.loads(body)["files"]
            return 200, {"files": [self._mode(file["path"]) for file in files]}
        if BATCH.fullmatch(path):
            return 200, {"transfer": "basic", "objects": [self._action(one) for one in json.loads(body)["objects"]]}
        if match := COMMIT.fullmatch(path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        return 404, {"error": "Not Found"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if asked["organization"] not in ("org", "someone"):
            return 403, {"error": f"You don't have the rights to create a model under {asked['organization']}"}
        name = f"{asked['organization']}/{asked['name']}"
        answer = {"url": f"{self.url}/{name}"}
        if name in self.repositories:
            return 409, answer | {"error": "You already created this model repo"}
        self._serve(name, self._new_folder())
        self.repositories[name].private = asked.get("visibility") == "private"
        return 200, answer

    def _mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "lfs" if Path(path).suffix in LARGE else "regular", "shouldIgnore": False}

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if (self._folder / "objects" / wanted["oid"]).exists():
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}

    def _object(self, oid: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if any(part in body for part in self.refuses):
            return 507, {"error": "No space left"}
        assert hashlib.sha256(body).hexdigest() == oid
        (self._folder / "objects" / oid).write_bytes(body)
        self.uploads.append(oid)
        return 200, {}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        repository = self.repositories[name]
        folder = self._new_folder(repository.directories[repository.revisions["main"]])
        for line in lines:
            value = line["value"]
            path = folder / value.get("path", "")
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                shutil.copyfile(self._folder / "objects" / value["oid"], path)
            elif line["key"] == "deletedFile":
                path.unlink()
        commit = self._serve(name, folder)
        return 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}

    def _new_folder(self, like: Path | None = None) -> Path:
        folder = self._folder / f"revision-{len(list(self._folder.iterdir()))}"
        if like is None:
            folder.mkdir()
        else:
            shutil.copytree(like, folder)
        return folder

    def _serve(self, name: str, folder: Path) -> str:
        """Serve a folder as the newest revision of a repository, and return its commit."""
        raise NotImplementedError
