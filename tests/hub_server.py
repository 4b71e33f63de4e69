"""A Hugging Face Hub on loopback, for the real client: models, branches, tags, LFS, and faults.

    python tests/hub_server.py FOLDER PORT

Everything is kept in FOLDER, so that it may be killed and started again. It speaks as much of the
Hub's HTTP API as huggingface_hub 2.4 needs to create, upload, tag, list and download models.

Faults are asked for by ``POST /_faults`` with a list of objects, each with ``match`` (a regex that
is searched in ``"METHOD /path"``), ``kind`` and ``count``. Kinds: ``refuse`` (the connection is
closed), ``status`` (with ``status``, ``code`` and ``message``), ``slow`` (after ``seconds``),
``lost`` (done, but not answered), ``corrupt`` (what is stored has a byte turned).
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, USER = "hf_loopback", "someone"

LFS_FROM = 1_000
"""Bytes from which a file is kept by LFS, whatever its name."""


class HttpError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def git_oid(content: bytes) -> str:
    """A blob's name in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """Repositories in a folder: blobs by their names, and one JSON file a repository."""

    folder: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    faults: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)

    def put_blob(self, name: str, content: bytes) -> None:
        """Keep a blob, at once."""
        draft = self.folder / f"{uuid.uuid4().hex}.tmp"
        draft.write_bytes(content)
        draft.rename(self.folder / "blobs" / name)

    def blob(self, name: str) -> bytes:
        return (self.folder / "blobs" / name).read_bytes()

    def has_blob(self, name: str) -> bool:
        return (self.folder / "blobs" / name).exists()

    def has_whole_blob(self, oid: str) -> bool:
        return self.has_blob(oid) and hashlib.sha256(self.blob(oid)).hexdigest() == oid

    def path(self, repo_id: str) -> Path:
        return self.folder / f"{repo_id.replace('/', '--')}.json"

    def repo(self, repo_id: str) -> dict[str, Any]:
        if not self.path(repo_id).exists():
            raise HttpError(404, "RepoNotFound", f"no repository {repo_id}")
        found: dict[str, Any] = json.loads(self.path(repo_id).read_text())
        return found

    def save(self, repo_id: str, repo: dict[str, Any]) -> None:
        draft = self.folder / f"{uuid.uuid4().hex}.tmp"
        draft.write_text(json.dumps(repo))
        draft.rename(self.path(repo_id))

    def create(self, repo_id: str, *, private: bool) -> None:
        if self.path(repo_id).exists():
            raise HttpError(409, message="You already created this model repo")
        first = uuid.uuid4().hex + "0" * 8
        commit = {"files": {}, "parent": None, "message": "initial commit"}
        self.save(
            repo_id,
            {
                "private": private,
                "branches": {"main": first},
                "tags": {},
                "commits": {first: commit},
            },
        )

    def resolve(self, repo: dict[str, Any], revision: str) -> str:
        """The commit that a branch, a tag or a commit's own name stands for."""
        for refs in (repo["branches"], repo["tags"]):
            if revision in refs:
                return str(refs[revision])
        if revision in repo["commits"]:
            return revision
        raise HttpError(404, "RevisionNotFound", f"no revision {revision}")

    def files(self, repo_id: str, revision: str) -> tuple[str, dict[str, Any]]:
        repo = self.repo(repo_id)
        commit = self.resolve(repo, revision)
        return commit, repo["commits"][commit]["files"]

    def commit(self, repo_id: str, branch: str, lines: list[dict[str, Any]]) -> str:
        repo = self.repo(repo_id)
        if branch not in repo["branches"]:
            raise HttpError(404, "RevisionNotFound", f"no branch {branch}")
        parent = repo["branches"][branch]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, parent):
            raise HttpError(412, message="the branch has moved on")
        files = dict(repo["commits"][parent]["files"])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                self.put_blob(git_oid(content), content)
                files[value["path"]] = {"oid": git_oid(content), "size": len(content)}
            elif line["key"] == "lfsFile":
                if not self.has_blob(value["oid"]):
                    raise HttpError(400, message=f"LFS object {value['oid']} was not uploaded")
                content = self.blob(value["oid"])
                found = hashlib.sha256(content).hexdigest()  # another where it was corrupted
                pointer = f"oid sha256:{found}\nsize {len(content)}\n".encode()
                lfs = {"oid": found, "size": len(content), "pointerSize": len(pointer)}
                files[value["path"]] = {"oid": git_oid(pointer), "size": len(content), "lfs": lfs}
                self.put_blob(found, content)
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
            elif line["key"] == "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                files = {
                    path: entry for path, entry in files.items() if not path.startswith(inside)
                }
        oid = hashlib.sha1(json.dumps([parent, files, time.time_ns()]).encode()).hexdigest()
        repo["commits"][oid] = {"files": files, "parent": parent, "message": header["summary"]}
        repo["branches"][branch] = oid
        self.save(repo_id, repo)
        return oid


class Handler(BaseHTTPRequestHandler):
    """Answers one request after another on a connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = address.path
        body = self._read_body()
        what = f"{self.command} {path}"
        if path.startswith("/_"):
            self._send(200, self._control(path, body))
            return
        fault = self._fault_of(what)
        kind = fault["kind"] if fault else ""
        self.hub.log.append(f"{what} {kind}".strip())
        if kind == "slow":
            time.sleep(fault["seconds"])
        if kind == "refuse":
            self.close_connection = True
            return
        try:
            if kind == "status":
                raise HttpError(fault["status"], fault.get("code", ""), fault.get("message", ""))
            with self.hub.lock:
                status, answer, headers = self._do(path, parse_qs(address.query), body, kind)
        except HttpError as error:
            headers = {"X-Error-Message": error.message or str(error.status)}
            headers |= {"X-Error-Code": error.code} if error.code else {}
            self._send(error.status, {"error": error.message}, headers)
            return
        if kind == "lost":
            self.close_connection = True
            return
        self._send(status, answer, headers)

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            blocks = []
            while size := int(self.rfile.readline(), 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(blocks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _control(self, path: str, body: bytes) -> Any:
        if path == "/_faults":
            self.hub.faults[:] = json.loads(body)
        return {"log": self.hub.log, "faults": self.hub.faults}

    def _fault_of(self, what: str) -> dict[str, Any]:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.get("count", 1) > 0 and re.search(fault["match"], what):
                    fault["count"] = fault.get("count", 1) - 1
                    return fault
        return {}

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value.replace("\n", " "))
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _do(
        self, path: str, query: dict[str, list[str]], body: bytes, fault: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Do what is asked; return status, answer and headers."""
        for method, pattern, action in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                names = {name: unquote(value) for name, value in match.groupdict().items() if value}
                if "lfs/" not in path and not names.get("file"):
                    self._check_token()
                return action(
                    self.hub, body=body, query=query, fault=fault, base=self._base(), **names
                )
        raise HttpError(404, message=f"this Hub does not know {self.command} {path}")

    def _base(self) -> str:
        return f"http://{self.headers['Host']}"

    def _check_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise HttpError(401, message="Invalid credentials in Authorization header")


Answer = tuple[int, Any, dict[str, str]]


def whoami(hub: Hub, **_: Any) -> Answer:
    role = {"accessToken": {"displayName": "loopback", "role": "write"}}
    return 200, {"type": "user", "name": USER, "orgs": [], "auth": role}, {}


def create_repo(hub: Hub, *, body: bytes, base: str, **_: Any) -> Answer:
    asked = json.loads(body)
    repo_id = f"{asked.get('organization') or USER}/{asked['name']}"
    try:
        hub.create(repo_id, private=asked.get("visibility") == "private")
    except HttpError as error:
        return error.status, {"error": error.message, "url": f"{base}/{repo_id}"}, {}
    return 200, {"url": f"{base}/{repo_id}", "name": repo_id}, {}


def validate_yaml(hub: Hub, **_: Any) -> Answer:
    return 200, {"errors": [], "warnings": []}, {}


def create_branch(hub: Hub, *, repo: str, branch: str, body: bytes, **_: Any) -> Answer:
    found = hub.repo(repo)
    if branch in found["branches"]:
        raise HttpError(409, message=f"Reference already exists: {branch}")
    start = json.loads(body or b"{}").get("startingPoint", "main")
    found["branches"][branch] = hub.resolve(found, start)
    hub.save(repo, found)
    return 200, {}, {}


def create_tag(hub: Hub, *, repo: str, revision: str, body: bytes, **_: Any) -> Answer:
    found, tag = hub.repo(repo), json.loads(body)["tag"]
    if tag in found["tags"]:
        raise HttpError(409, message=f"Tag reference exists already: {tag}")
    found["tags"][tag] = hub.resolve(found, revision)
    hub.save(repo, found)
    return 200, {}, {}


def preupload(hub: Hub, *, repo: str, revision: str, body: bytes, **_: Any) -> Answer:
    _, files = hub.files(repo, revision)
    answer = [
        {
            "path": asked["path"],
            "uploadMode": "lfs" if asked["size"] >= LFS_FROM else "regular",
            "shouldIgnore": False,
            "oid": _known_oid(files.get(asked["path"])),
        }
        for asked in json.loads(body)["files"]
    ]
    return 200, {"files": answer}, {}


def _known_oid(entry: dict[str, Any] | None) -> str | None:
    if entry is None:
        return None
    return str(entry["lfs"]["oid"] if "lfs" in entry else entry["oid"])


def lfs_batch(hub: Hub, *, body: bytes, base: str, **_: Any) -> Answer:
    objects = []
    for asked in json.loads(body)["objects"]:
        one = {"oid": asked["oid"], "size": asked["size"]}
        if not hub.has_whole_blob(asked["oid"]):
            one["actions"] = {
                "upload": {"href": f"{base}/lfs/{asked['oid']}", "header": {}},
                "verify": {"href": f"{base}/lfs/verify", "header": {}},
            }
        objects.append(one)
    return 200, {"transfer": "basic", "objects": objects}, {}


def lfs_put(hub: Hub, *, oid: str, body: bytes, fault: str, **_: Any) -> Answer:
    if fault == "corrupt":
        hub.put_blob(oid, bytes([body[0] ^ 1]) + body[1:])
    elif hashlib.sha256(body).hexdigest() != oid:
        raise HttpError(400, message="the content does not have this checksum")
    else:
        hub.put_blob(oid, body)
    return 200, {}, {}


def lfs_verify(hub: Hub, *, body: bytes, **_: Any) -> Answer:
    asked = json.loads(body)
    if not hub.has_blob(asked["oid"]) or len(hub.blob(asked["oid"])) != asked["size"]:
        raise HttpError(404, message="not uploaded")
    return 200, {}, {}


def commit(hub: Hub, *, repo: str, revision: str, body: bytes, base: str, **_: Any) -> Answer:
    lines = [json.loads(line) for line in body.split(b"\n") if line]
    oid = hub.commit(repo, revision, lines)
    return 200, {"commitUrl": f"{base}/{repo}/commit/{oid}", "commitOid": oid, "success": True}, {}


def model_info(hub: Hub, *, repo: str, revision: str = "main", **_: Any) -> Answer:
    oid, files = hub.files(repo, revision)
    siblings = [{"rfilename": path} for path in sorted(files)]
    private = hub.repo(repo)["private"]
    return 200, {"id": repo, "sha": oid, "private": private, "siblings": siblings, "tags": []}, {}


def refs(hub: Hub, *, repo: str, **_: Any) -> Answer:
    found = hub.repo(repo)

    def listed(kind: str, folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": oid}
            for name, oid in found[kind].items()
        ]

    return (
        200,
        {"branches": listed("branches", "heads"), "tags": listed("tags", "tags"), "converts": []},
        {},
    )


def tree(hub: Hub, *, repo: str, revision: str, **_: Any) -> Answer:
    _, files = hub.files(repo, revision)
    return (
        200,
        [{"type": "file", "path": path, **entry} for path, entry in sorted(files.items())],
        {},
    )


def paths_info(hub: Hub, *, repo: str, revision: str, body: bytes, **_: Any) -> Answer:
    _, files = hub.files(repo, revision)
    asked = parse_qs(body.decode())["paths"]  # the client sends a form here
    return 200, [{"type": "file", "path": p, **files[p]} for p in asked if p in files], {}


def resolve_file(hub: Hub, *, repo: str, revision: str, file: str, **_: Any) -> Answer:
    oid, files = hub.files(repo, revision)
    if file not in files:
        raise HttpError(404, "EntryNotFound", f"no file {file}")
    entry = files[file]
    name = _known_oid(entry) or ""
    headers = {"X-Repo-Commit": oid, "ETag": f'"{name}"', "X-Linked-Size": str(entry["size"])}
    return 200, hub.blob(name), headers | {"Accept-Ranges": "none"}


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/models/{_REPO}"

ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create_repo),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", create_branch),
    ("POST", rf"{_API}/tag/(?P<revision>[^/]+)", create_tag),
    ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", commit),
    ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", paths_info),
    ("GET", rf"{_API}/refs", refs),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)", tree),
    ("GET", rf"{_API}(?:/revision/(?P<revision>[^/]+))?", model_info),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", r"/lfs/verify", lfs_verify),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", resolve_file),
    ("HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", resolve_file),
]


class Server(ThreadingHTTPServer):
    """A server that, once closed, answers on no connection that clients still have."""

    daemon_threads = True

    def __init__(self, port: int, handler: type[Handler]) -> None:
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in [*self.connections]:
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)


def serve(folder: Path, port: int) -> Server:
    """Return a server that listens on loopback."""
    return Server(port, type("BoundHandler", (Handler,), {"hub": Hub(folder)}))


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve from a thread on a free port; give the address."""
    server = serve(folder, 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask_for(endpoint: str, *faults: dict) -> list[str]:
    """Ask the Hub for faults; return the requests that it has had."""
    request = urllib.request.Request(f"{endpoint}/_faults", json.dumps(faults).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["log"]


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    serve(Path(sys.argv[1]), int(sys.argv[2])).serve_forever()
