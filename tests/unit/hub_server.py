"""A local stand-in of the HTTP interface of the Hugging Face Hub: create, upload (regular and LFS), list, download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = (".safetensors",)


class Hub:
    """Repositories in memory. commits: files by commit of each repository, the latest last."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, authorization

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Files of a commit; KeyError for an unknown one."""
        commits = self.commits[repo]
        return commits[revision if revision != "main" else list(commits)[-1]]

    def commit_of(self, repo: str, revision: str) -> str:
        commits = self.commits[repo]
        return list(commits)[-1] if revision == "main" else revision

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.files(repo))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        digest = hashlib.sha1(repr((len(self.commits[repo]), sorted(files.items()))).encode()).hexdigest()
        self.commits[repo][digest] = files
        return digest


@contextmanager
def serving() -> Iterator[tuple[Hub, str]]:
    """A hub and the URL of its server."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                try:
                    answer(self, body, *match.groups())
                except KeyError:
                    self._send(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
                return
        self._send(404, {"error": f"no route for {self.command} {path}"})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if self.headers.get("Authorization") is None:
            return self._send(401, {"error": "no token"})
        if repo in self.hub.commits:
            return self._send(409, {"error": "exists", "url": f"http://{self.headers['Host']}/{repo}"})
        self.hub.commits[repo] = {"0" * 40: {".gitattributes": b""}}
        self.hub.private[repo] = wanted.get("private") or wanted.get("visibility") == "private"
        return self._send(200, {"url": f"http://{self.headers['Host']}/{repo}", "name": repo})

    def validate(self, body: bytes) -> None:
        valid = json.loads(body)["content"].startswith("---\n")
        self._send(200, {"errors": [] if valid else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        self.hub.files(repo)
        found = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": found})

    def batch(self, body: bytes, repo: str) -> None:
        url = f"http://{self.headers['Host']}/objects"
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{url}/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._send(200, {})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        oid = self.hub.commit(repo, [json.loads(line) for line in body.splitlines()])
        self._send(200, {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/{oid}", "commitOid": oid})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        files = self.hub.files(repo, revision or "main")
        siblings = [{"rfilename": name} for name in files]
        sha = self.hub.commit_of(repo, revision or "main")
        self._send(200, {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "private": False})

    def tree(self, body: bytes, repo: str, revision: str) -> None:
        rows = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.hub.files(repo, revision).items()
        ]
        self._send(200, rows)

    def resolve(self, body: bytes, repo: str, revision: str, name: str) -> None:
        content = self.hub.files(repo, revision)[name]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": self.hub.commit_of(repo, revision)})


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/preupload/(\w+)", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/objects/(\w+)", _Handler.put),
    ("POST", rf"/api/models/{_REPO}/commit/(\w+)", _Handler.commit),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/([\w.-]+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/([\w.-]+)", _Handler.tree),
    ("HEAD", rf"/{_REPO}/resolve/([\w.-]+)/(.+)", _Handler.resolve),
    ("GET", rf"/{_REPO}/resolve/([\w.-]+)/(.+)", _Handler.resolve),
)
