"""A small hub on loopback: enough of its interface for ``datasets`` to find a data set's files and read ranges, and for a
model's files to be fetched.
"""

import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "a" * 40
CARD = """---
configs:
- config_name: plain_text
  data_files: [{split: train, path: plain_text/train-*}]
---
"""


def parquet(texts: list[str], rows_a_group: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "url": texts}), file, row_group_size=rows_a_group)
    return file.getvalue()


def data_set(texts: list[str], files: int, rows_a_group: int = 7) -> dict[str, bytes]:
    """A data set's files by path."""
    size = -(-len(texts) // files)
    parts = [parquet(texts[i : i + size], rows_a_group) for i in range(0, len(texts), size)]
    named = {f"plain_text/train-{i:05}-of-{files:05}.parquet": part for i, part in enumerate(parts)}
    return named | {"README.md": CARD.encode()}


@contextmanager
def serve(sets: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and a list to which every request for a file's content is added."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else b""
            url = urlsplit(self.path)
            if found := re.match(r"/api/datasets/([^/]+/[^/]+)(?:/(\w[\w-]*)/([^/]+)(?:/(.*))?)?$", url.path):
                self.about(found[1], found[2], unquote(found[3] or "main"), unquote(found[4] or ""), parse_qs(url.query), body)
            elif found := re.match(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", url.path):
                self.content(found[1], unquote(found[3]))
            else:
                self.answer(404)

        def about(self, name: str, kind: str | None, revision: str, folder: str, query: dict, body: bytes) -> None:
            if name not in sets:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            elif kind in (None, "revision"):
                siblings = [{"rfilename": path} for path in sets[name]]
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "tags": [], "siblings": siblings}).encode())
            elif kind == "tree":
                self.tree(sets[name], folder, query.get("recursive", ["false"])[0].lower() == "true")
            else:
                self.answer(200, json.dumps([e for e in entries(sets[name]) if e["path"].encode() in body]).encode())

        def tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
            prefix = f"{folder}/" if folder else ""
            found = [e for e in entries(files) if e["path"].startswith(prefix)]
            found = [e for e in found if recursive or "/" not in e["path"].removeprefix(prefix)]
            if found:
                self.answer(200, json.dumps(found).encode())
            else:
                self.answer(404, b"{}", X_Error_Code="EntryNotFound")

        def content(self, name: str, path: str) -> None:
            data = sets.get(name, {}).get(path)
            if data is None:
                self.answer(404, X_Error_Code="EntryNotFound")
                return
            asked.append(path)
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            if self.command == "GET" and (found := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
                first, last = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                self.answer(206, data[first : last + 1], **headers)
            else:
                self.answer(200, data, **headers)

        do_GET = do_HEAD = do_POST = handle_request

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def entries(files: dict[str, bytes]) -> list[dict[str, object]]:
    """Files and folders as the hub lists them."""
    folders = sorted({path.rpartition("/")[0] for path in files} - {""})
    listed: list[dict[str, object]] = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
    hashed = {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}
    return listed + [{"type": "file", "path": path, "size": len(data), "oid": hashed[path]} for path, data in files.items()]
