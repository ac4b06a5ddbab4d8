"""A hub on this machine: it answers the HTTP calls of ``huggingface_hub`` that uploads and downloads are made of.

It keeps repositories as commits of whole files, files of weights by git LFS, and wants a token for writing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "t" * 34
USER = "me"


@dataclass
class Repository:
    """Files by revision: ``main``, commits, and pull requests as ``refs/pr/N``."""

    private: bool
    revisions: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    messages: list[str] = field(default_factory=list)

    def commit(self, revision: str, files: dict[str, bytes], message: str) -> str:
        content = repr((sorted(files.items()), message, len(self.messages))).encode()
        oid = hashlib.sha1(content).hexdigest()
        self.revisions[revision] = self.revisions[oid] = files
        self.commits[revision] = self.commits[oid] = oid
        self.messages.append(message)
        return oid


class FakeHub(ThreadingHTTPServer):
    """The server, with what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {path}")
        for method, pattern, reply in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                reply(self, *found.groups())
                return
        self.reply(404, {"error": "no such route"})

    def reply(self, status: int, value: Any = None, content: bytes | None = None, **headers: str) -> None:
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self) -> Any:
        return json.loads(self.body)

    def allowed(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.reply(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid username or password.")
        return False

    def repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        repository = self.repository(name)
        if repository is None:
            return None
        if revision not in repository.revisions:
            self.reply(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
            return None
        return repository.revisions[revision]

    # The calls, in the order of an upload.

    def validate_yaml(self) -> None:
        head = re.match(r"---\n(.*?)\n---\n", self.json()["content"], re.DOTALL)
        metadata = yaml.safe_load(head[1]) if head else {}
        wrong = [name for name in ("license", "base_model", "library_name") if not isinstance(metadata.get(name), str)]
        if metadata.get("license") == "no-such-licence":
            wrong.append("license")
        errors = [{"message": f'"{name}" is not valid'} for name in wrong]
        status = 400 if errors else 200
        if self.headers.get("Accept") == "text/plain":  # ModelCard.validate
            self.reply(status, content="\n".join(error["message"] for error in errors).encode())
        else:  # create_commit
            self.reply(status, {"errors": errors, "warnings": []})

    def create(self) -> None:
        if not self.allowed():
            return
        name = f"{self.json()['organization'] or USER}/{self.json()['name']}"
        if not name.startswith(f"{USER}/"):
            said = "You don't have the rights to create a model under this namespace"
            self.reply(403, {"error": said}, X_Error_Message=said)
            return
        status = 409 if name in self.server.repositories else 200
        if status == 200:
            asked = self.json()
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server.repositories[name] = Repository(private)
        self.reply(status, {"url": f"{self.server.url}/{name}"})

    def info(self, name: str, revision: str = "main") -> None:
        if (files := self.files(name, revision)) is not None:
            repository = self.server.repositories[name]
            siblings = [{"rfilename": file} for file in files]
            sha = repository.commits[revision]
            self.reply(200, {"id": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        if (files := self.files(name, revision)) is not None:
            entries = [{"type": "file", "path": file, "size": len(content)} for file, content in files.items()]
            self.reply(200, [entry | {"oid": etag(files[str(entry["path"])])} for entry in entries])

    def preupload(self, name: str, revision: str) -> None:
        if self.allowed() and self.files(name, revision) is not None:
            modes = [
                {"path": file["path"], "shouldIgnore": False}
                | {"uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular"}
                for file in self.json()["files"]
            ]
            self.reply(200, {"files": modes})

    def batch(self, name: str) -> None:
        if self.allowed():
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}", "header": {}}}}
                for asked in self.json()["objects"]
            ]
            self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        whole = hashlib.sha256(self.body).hexdigest() == oid
        if whole:
            self.server.objects[oid] = self.body
        self.reply(200 if whole else 400, {})

    def commit(self, name: str, revision: str) -> None:
        if not self.allowed() or (before := self.files(name, revision)) is None:
            return
        files, message = dict(before), ""
        for line in self.body.splitlines():
            kind, value = json.loads(line)["key"], json.loads(line)["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            else:
                assert kind == "deletedFile", kind
                del files[value["path"]]
        repository = self.server.repositories[name]
        asked = "create_pr=1" in self.path
        number = sum(name.startswith("refs/pr/") for name in repository.revisions) + 1
        oid = repository.commit(f"refs/pr/{number}" if asked else revision, files, message)
        pull_request = f"{self.server.url}/{name}/discussions/{number}" if asked else None
        commit = {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}
        self.reply(200, commit | {"success": True, "pullRequestUrl": pull_request})

    def resolve(self, name: str, revision: str, file: str) -> None:
        files = self.files(name, revision)
        if files is None:
            return
        commit = self.server.repositories[name].commits[revision]
        if file not in files:
            self.reply(404, {}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        self.reply(200, content=files[file], ETag=f'"{etag(files[file])}"', X_Repo_Commit=commit)


def etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([\w./-]+?)"
ROUTES = [
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", f"/api/models/{NAME}", _Handler.info),
    ("GET", f"/api/models/{NAME}/revision/{REVISION}", _Handler.info),
    ("GET", f"/api/models/{NAME}/tree/{REVISION}", _Handler.tree),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/lfs/(\w+)", _Handler.put),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", _Handler.commit),
    ("HEAD", rf"/{NAME}/resolve/([\w-]+|refs/pr/\d+)/(.+)", _Handler.resolve),
    ("GET", rf"/{NAME}/resolve/([\w-]+|refs/pr/\d+)/(.+)", _Handler.resolve),
]
