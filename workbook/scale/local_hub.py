"""A hub on this machine: serves a folder as huggingface.co does, to the hub's own client and to plain downloads.

    with serve(folder) as url: ...    # and HF_ENDPOINT=url for the client

`folder/models/<owner>/<name>/...` and `folder/datasets/<owner>/<name>/...` are repositories of one version, which is
served as whatever commit is asked for; everything else below `folder` is a file to download.  Used to rehearse what
a machine with a network does (`workbook.scale.rehearsal`), and in tests.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

NEWEST = "f" * 40  # the commit that `main` stands for
NAME = r"(?P<name>[^/]+/[^/]+)"
API = re.compile(rf"/api/(?P<kind>models|datasets)/{NAME}(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?$")
RESOLVE = re.compile(rf"/(?P<kind>datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


class Handler(BaseHTTPRequestHandler):
    folder: Path
    requests: list[str]  # paths, with the range that was asked for

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path + (self.headers.get("Range") or ""))
        if match := API.match(path):
            self._repository(self.folder / match["kind"] / match["name"], match["what"], match["revision"])
        elif match := RESOLVE.match(path):
            repository = self.folder / (match["kind"] or "models") / match["name"]
            self._file(repository / match["file"], {"X-Repo-Commit": _commit(match["revision"])})
        else:
            self._file(self.folder / path.lstrip("/"))

    do_HEAD = do_GET

    def _repository(self, repository: Path, what: str | None, revision: str | None) -> None:
        if not repository.is_dir():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        files = sorted(file for file in repository.rglob("*") if file.is_file())
        if what == "tree":
            answer = [
                {"type": "file", "path": str(f.relative_to(repository)), "size": f.stat().st_size, "oid": _etag(f)}
                for f in files
            ]
        else:
            name = str(repository.relative_to(repository.parents[1]))
            answer = {"id": name, "sha": _commit(revision), "gated": False, "private": False, "tags": []}
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path, headers: dict | None = None) -> None:
        if not file.resolve().is_relative_to(self.folder.resolve()) or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(file.read_bytes(), {**(headers or {}), "ETag": f'"{_etag(file)}"', "Accept-Ranges": "bytes"})

    def _send(self, content: bytes, headers: dict) -> None:
        span = self.headers.get("Range")
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if span else 200)
        for name, value in {**headers, "Content-Length": len(content) - start}.items():
            self.send_header(name, str(value))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:])

    def log_message(self, *_) -> None:
        """No line for each request."""


def _commit(revision: str | None) -> str:
    return revision if re.fullmatch("[0-9a-f]{40}", revision or "") else NEWEST


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve(folder: str | Path, requests: list[str] | None = None) -> Iterator[str]:
    """Serve a folder while the context lasts; gives the server's address, and notes requests in a list."""
    settings = {"folder": Path(folder), "requests": [] if requests is None else requests}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("FolderHandler", (Handler,), settings))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
