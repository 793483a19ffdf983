"""A stand-in for the Hugging Face hub on loopback: just enough for the real client."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

REVISION = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves data sets given as {id: {path: bytes}}. `requests` says what was asked for."""

    def __init__(self, datasets: dict[str, dict[str, bytes]]) -> None:
        self.datasets = datasets
        self.requests: list[str] = []
        self.truncate = 0
        """Bytes to leave out at the end of every Parquet file, while saying its full length."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                hub._answer(self, body=True, posted=self.rfile.read(size))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: Any, *, body: bool, posted: bytes = b"") -> None:
        url = urlparse(handler.path)
        path = unquote(url.path)
        self.requests.append(f"{handler.command} {path}")
        for name, files in self.datasets.items():
            if path.startswith(f"/api/datasets/{name}"):
                rest = path.removeprefix(f"/api/datasets/{name}").strip("/")
                self._api(handler, name, files, rest, posted, parse_qs(url.query))
                return
            prefix = f"/datasets/{name}/resolve/"
            if path.startswith(prefix):
                _, _, file = path.removeprefix(prefix).partition("/")
                if file in files:
                    self._file(handler, files[file], file, body)
                else:
                    self._missing(handler, "EntryNotFound", body)
                return
        self._missing(handler, "RepoNotFound", body)

    def _missing(self, handler: Any, what: str, body: bool) -> None:
        self._send(handler, 404, {"X-Error-Code": what}, b'{"error": "not found"}', body)

    def _api(
        self,
        handler: Any,
        name: str,
        files: dict[str, bytes],
        rest: str,
        posted: bytes,
        query: dict[str, list[str]],
    ) -> None:
        entries = [_entry(path, data) for path, data in sorted(files.items())]
        if rest.startswith("paths-info"):
            asked = _paths(posted)
            folders = [
                {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
                for path in asked
                if any(file.startswith(f"{path}/") for file in files)
            ]
            found = [entry for entry in entries if entry["path"] in asked]
            self._json(handler, found + folders)
        elif rest.startswith("tree/"):
            _, _, folder = rest.removeprefix("tree/").partition("/")
            listed = [e for e in entries if not folder or e["path"].startswith(f"{folder}/")]
            if query.get("recursive", ["false"])[0].lower() != "true":
                listed = _one_level(listed, folder)
            self._json(handler, listed)
        else:
            siblings = [{"rfilename": path} for path in sorted(files)]
            info = {
                "id": name,
                "sha": REVISION,
                "private": False,
                "gated": False,
                "disabled": False,
            }
            info |= {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
            self._json(handler, info)

    def _file(self, handler: Any, data: bytes, path: str, body: bool) -> None:
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        status, part = 200, data
        if wanted := handler.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first or 0)
            stop = min(int(last) + 1 if last else len(data), len(data))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            status, part = 206, data[start:stop]
        if self.truncate and path.endswith(".parquet") and body:
            headers["Content-Length"] = str(len(part))
            part = part[: -self.truncate]
            handler.close_connection = True
        self._send(handler, status, headers, part, body)

    def _json(self, handler: Any, value: Any) -> None:
        headers = {"Content-Type": "application/json"}
        self._send(handler, 200, headers, json.dumps(value).encode())

    def _send(
        self, handler: Any, status: int, headers: dict[str, str], data: bytes, body: bool = True
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if body:
            handler.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}


def _one_level(entries: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    base = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        head, slash, _ = entry["path"].removeprefix(base).partition("/")
        if slash:
            place = base + head
            found[place] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": place}
        else:
            found[entry["path"]] = entry
    return list(found.values())


def _paths(posted: bytes) -> list[str]:
    try:
        return list(json.loads(posted)["paths"])
    except ValueError:
        return parse_qs(posted.decode())["paths"]
