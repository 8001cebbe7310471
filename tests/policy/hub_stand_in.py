"""A stand-in for the Hugging Face Hub: the endpoints that huggingface_hub needs to fetch and to push a model."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER = "hf_writer-token-of-the-tests"
LARGE = ".safetensors"


@dataclass
class Repository:
    """Branches and commits; a commit is its files."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        told = repr((len(self.commits), branch, sorted(files))).encode()
        sha = hashlib.sha1(told).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class HubStandIn:
    """Listens on a free port of this machine.

    Attributes:
        url: the value for HF_ENDPOINT.
        repositories: by ``OWNER/NAME``.
        requests: method, path and bearer token of every request.
        stall: set to answer nothing until ``released`` is set.
        fail_with: status that every request is answered with, or None.
        sizes: sizes to claim, by file name.
        before_file: called before each file is sent.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.stall, self.released = False, threading.Event()
        self.fail_with: int | None = None
        self.sizes: dict[str, int] = {}
        self.before_file: Callable[[], object] | None = None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def _object_id(path: str, data: bytes | None) -> str | None:
    """Return what names a file's content: of a large one its hash, else that of git."""
    if data is None or path.endswith(LARGE):
        return data if data is None else hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.requests.append((self.command, path, self.token))
        if hub.stall:
            hub.released.wait(30)
        if hub.fail_with is not None:
            return self._send(hub.fail_with, {"error": "the stand-in was told to fail"})
        words = path.strip("/").split("/")
        if words == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if words == ["api", "validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        if words[0] == "large":
            return self._large(words[1], body)
        if words[2:] == ["info", "lfs", "objects", "batch"]:
            return self._batch(json.loads(body))
        named = words[2:4] if words[:2] == ["api", "models"] else words[:2]
        rest = words[4:] if words[:2] == ["api", "models"] else words[2:]
        repository = hub.repositories.get("/".join(named))
        if repository is None or (repository.private and self.token != WRITER):
            status = 404 if self.token == WRITER else 401
            return self._send(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repository.gated and self.token != WRITER:
            return self._send(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        if rest[:1] == ["resolve"]:
            return self._file(repository, rest[1], "/".join(rest[2:]))
        if self.command == "POST":
            return self._write(repository, "/".join(named), rest, body)
        return self._info(repository, "/".join(named), rest[1] if rest[:1] == ["revision"] else "main")

    def _info(self, repository: Repository, name: str, revision: str) -> None:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = [
            {"rfilename": file, "size": self.hub.sizes.get(file, len(data))}
            for file, data in repository.commits[sha].items()
        ]
        told = {"_id": "0", "id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": files}
        return self._send(200, {**told, "tags": [], "downloads": 0, "likes": 0})

    def _file(self, repository: Repository, revision: str, file: str) -> None:
        if self.hub.before_file is not None:
            self.hub.before_file()
        sha = repository.branches.get(revision, revision)
        data = repository.commits.get(sha, {}).get(file)
        if data is None:
            return self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        return self._send(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha)

    def _create(self, asked: dict[str, Any]) -> None:
        if self.token != WRITER:
            return self._send(401, {"error": "Invalid username or password."})
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = self.hub.repositories[name] = Repository(private=private)
        repository.commit("main", {".gitattributes": b""})
        return self._send(200, {"url": f"{self.hub.url}/{name}", "id": "0", "name": name})

    def _write(self, repository: Repository, name: str, rest: list[str], body: bytes) -> None:
        if self.token != WRITER:
            return self._send(401, {"error": "Invalid username or password."})
        if rest[0] == "branch":
            if rest[1] in repository.branches:
                return self._send(409, {"error": "Reference already exists"})
            repository.branches[rest[1]] = repository.branches["main"]
            return self._send(200, {})
        if rest[0] == "preupload":
            there = repository.commits.get(repository.branches.get(rest[1], ""), {})
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": _object_id(file["path"], there.get(file["path"])),
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        branch = rest[1]
        if branch not in repository.branches:
            return self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = dict(repository.commits[repository.branches[branch]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = repository.commit(branch, files)
        return self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**item, "authenticated": True, "actions": {"upload": {"href": f"{self.hub.url}/large/{item['oid']}"}}}
            for item in asked["objects"]
        ]
        return self._send(200, {"transfer": "basic", "objects": objects})

    def _large(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        return self._send(200)
