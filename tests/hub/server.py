"""A server that speaks as Hugging Face and ModelScope do, and misbehaves on command.

`HF_ENDPOINT` and `MODELSCOPE_DOMAIN` lead there. Large files are redirected to another origin, the
"CDN", as on the real hub: the token must not follow them there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000  # entries of a page, as on the hub
_CHUNK = 1 << 14


@dataclass
class Repository:
    files: dict[str, bytes]
    revision: str = "a" * 40
    licence: str = "apache-2.0"
    gated: bool = False
    token: str = ""  # that may read it, where it is gated
    branches: tuple[str, ...] = ("main", "master")


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    sent: int = 0  # bytes of the body


@dataclass
class Hub:
    """What the server has and how it behaves; tests change it while it runs."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    port: int = 0
    cuts: list[int] = field(default_factory=list)  # the next bodies end after so many bytes
    busy: int = 0  # so many answers are 429
    retry_after: str = "0"
    broken: int = 0  # so many answers are 500
    bytes_per_s: float | None = None
    ranges: bool = True
    flip: dict[str, int] = field(default_factory=dict)  # file → how many bodies of it are damaged
    etags: bool = True
    gate: threading.Event | None = None  # bodies stop in the middle until it is set
    requests: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, name: str, files: dict[str, bytes], **keys: Any) -> Repository:
        self.repositories[name] = Repository(files, **keys)
        return self.repositories[name]

    def bodies(self, part: str = "/cdn/") -> list[Request]:
        """Return the requests for large files."""
        return [request for request in self.requests if part in request.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.request_seen = Request(self.path, headers)
        self.hub.requests.append(self.request_seen)
        path = unquote(url.path)
        if self.hub.busy:
            self.hub.busy -= 1
            self.answer(429, b"", {"retry-after": self.hub.retry_after})
        elif self.hub.broken:
            self.hub.broken -= 1
            self.answer(500, b"")
        elif path.startswith("/api/models/"):
            self.hugging_face(path.removeprefix("/api/models/"), query)
        elif path.startswith("/api/v1/models/"):
            self.modelscope(path.removeprefix("/api/v1/models/"), query)
        elif path.startswith("/cdn/"):
            self.cdn(path.removeprefix("/cdn/"))
        elif "/resolve/" in path:
            self.resolve(path)
        else:
            self.answer(404, b"")

    # ── Hugging Face ──

    def hugging_face(self, path: str, query: dict[str, str]) -> None:
        parts = path.split("/")
        repository = self.allowed("/".join(parts[:2]))
        if repository is None:
            return
        kind, revision = parts[2], "/".join(parts[3:])
        if revision not in (*repository.branches, repository.revision):
            self.answer(404, b"{}", {"x-error-code": "RevisionNotFound"})
        elif kind == "revision":
            names = [{"rfilename": name} for name in repository.files]
            tags = ["gguf", f"license:{repository.licence}"]
            self.json({"sha": repository.revision, "tags": tags, "siblings": names})
        else:
            at = int(query.get("cursor", "0"))
            names = list(repository.files)
            entries = [_entry(name, repository.files[name]) for name in names[at : at + PAGE]]
            more = {}
            if at + PAGE < len(names):
                following = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor="
                more["link"] = f'<{following}{at + PAGE}>; rel="next"'
            self.json(entries, more)

    def allowed(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.answer(401, b"{}", {"x-error-code": "RepoNotFound"})
            return None
        if repository.gated and not self.has_token(repository):
            self.answer(403, b"{}", {"x-error-code": "GatedRepo"})
            return None
        return repository

    def has_token(self, repository: Repository) -> bool:
        bearer = self.headers.get("authorization", "") == f"Bearer {repository.token}"
        return bearer or f"m_session_id={repository.token}" in self.headers.get("cookie", "")

    def resolve(self, path: str) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        repository = self.allowed(name)
        if repository is None:
            return
        revision, _, file = rest.partition("/")
        if revision != repository.revision or file not in repository.files:
            self.answer(404, b"", {"x-error-code": "EntryNotFound"})
        elif _is_lfs(file):
            # another name of the same machine is another origin
            target = f"http://localhost:{self.hub.port}/cdn/{name}/{file}"
            self.answer(302, b"", {"location": target})
        else:
            self.body(repository.files[file], file)

    def cdn(self, path: str) -> None:
        owner, name, file = path.split("/", 2)
        content = self.hub.repositories[f"{owner}/{name}"].files.get(file)
        if content is None:
            self.answer(404, b"")
        else:
            self.body(content, file)

    # ── ModelScope ──

    def modelscope(self, path: str, query: dict[str, str]) -> None:
        owner, name, *rest = path.split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        revision = query.get("Revision", "master")
        if repository is None or revision not in (*repository.branches, repository.revision):
            self.answer(404, b'{"Code": 10010205001, "Message": "not found", "Data": null}')
        elif repository.gated and not self.has_token(repository):
            self.answer(403, b"{}")
        elif rest == ["repo", "files"]:
            files = [
                {
                    "Path": path,
                    "Name": path.rpartition("/")[2],
                    "Type": "blob",
                    "Size": len(content),
                    "Sha256": hashlib.sha256(content).hexdigest(),
                    "Revision": repository.revision,
                }
                for path, content in repository.files.items()
            ]
            self.json({"Code": 200, "Data": {"Files": files}})
        elif query["FilePath"] in repository.files:
            self.body(repository.files[query["FilePath"]], query["FilePath"])
        else:
            self.answer(404, b"")

    # ── answers ──

    def body(self, content: bytes, file: str) -> None:
        """Send a file, or what was asked of it, as badly as the hub is told to."""
        if self.hub.flip.get(file, 0) > 0:
            self.hub.flip[file] -= 1
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        first, last, status = 0, len(content) - 1, 200
        asked = self.headers.get("range")
        if asked and self.hub.ranges and self.headers.get("if-range", etag) == etag:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last, status = int(begin), min(int(end or last), last), 206
        self.send_response(status)
        self.send_header("content-length", str(last - first + 1))
        if self.hub.etags:
            self.send_header("etag", etag)
        if status == 206:
            self.send_header("content-range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        self.pour(content[first : last + 1])

    def pour(self, content: bytes) -> None:
        whole = len(content)
        cut = self.hub.cuts.pop(0) if self.hub.cuts and whole > _CHUNK else None
        sent = 0
        while sent < len(content):
            piece = content[sent : sent + _CHUNK]
            if cut is not None:
                piece = piece[: max(0, cut - sent)]
            if piece:
                try:
                    self.wfile.write(piece)
                    self.wfile.flush()
                except OSError:
                    self.close_connection = True
                    return
            sent += len(piece)
            self.request_seen.sent = sent
            if cut is not None and sent >= cut:
                self.close_connection = True
                self.connection.close()
                return
            if self.hub.gate is not None and sent >= whole // 2:
                self.hub.gate.wait(60)
            if self.hub.bytes_per_s:
                time.sleep(len(piece) / self.hub.bytes_per_s)

    def json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        kind = {"content-type": "application/json"}
        self.answer(200, json.dumps(value).encode(), kind | (headers or {}))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


def _is_lfs(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors"))


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
    if _is_lfs(name):
        digest = hashlib.sha256(content).hexdigest()
        return entry | {
            "oid": "0" * 40,
            "lfs": {"oid": digest, "size": len(content), "pointerSize": 134},
        }
    blob = b"blob %d\0" % len(content) + content
    return entry | {"oid": hashlib.sha1(blob, usedforsecurity=False).hexdigest()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients are killed in these tests; that is no news."""


@contextlib.contextmanager
def served(certificate: Path | None = None) -> Iterator[Hub]:
    """Run a hub on loopback; with a certificate (and its key in one file) it speaks TLS."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.port = server.server_address[1]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.gate is not None:
            hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
