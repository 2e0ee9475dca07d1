"""A hub on this machine: serves a folder as huggingface.co does, to the hub's own client and to plain downloads.

    with serve(folder) as url: ...    # and HF_ENDPOINT=url for the client

`folder/models/<owner>/<name>/...` and `folder/datasets/<owner>/<name>/...` are repositories of one version, which is
served as whatever commit is asked for; everything else below `folder` is a file to download.
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

TREE = re.compile("/api/(models|datasets)/([^/]+/[^/]+)/tree/.+")
RESOLVE = re.compile("/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Handler(BaseHTTPRequestHandler):
    folder: Path
    requests: list[str]  # paths, with the range that was asked for

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path + self.headers.get("Range", ""))
        if match := TREE.fullmatch(path):
            self._list(self.folder / match[1] / match[2])
            return
        file, headers = self.folder / path.lstrip("/"), {}
        if match := RESOLVE.fullmatch(path):
            kind, name, revision, inside = match.groups()
            file, headers = self.folder / (kind or "models") / name / inside, {"X-Repo-Commit": revision}
        if file.is_file():
            self._send(file.read_bytes(), headers | {"ETag": f'"{_etag(file)}"'})
        else:
            self._send(b"", {"X-Error-Code": "EntryNotFound"}, 404)

    do_HEAD = do_GET

    def _list(self, repository: Path) -> None:
        """Say which files a repository has."""
        files = [file for file in sorted(repository.rglob("*")) if file.is_file()]
        entries = [
            {"type": "file", "path": str(f.relative_to(repository)), "size": f.stat().st_size, "oid": _etag(f)}
            for f in files
        ]
        if files:
            self._send(json.dumps(entries).encode(), {"Content-Type": "application/json"})
        else:
            self._send(b"", {"X-Error-Code": "RepoNotFound"}, 404)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        span = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        if start and status == 200:
            status = 206 if start < len(content) else 416
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content[start:]))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:])

    def log_message(self, *_) -> None:
        """No line for each request."""


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
