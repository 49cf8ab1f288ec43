"""A hub on this machine, in one process with the test: the addresses of huggingface.co that loading a data set or a
model asks, answered from a folder, as slowly as the test wants."""

import hashlib
import json
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

COMMIT = "8049631c405ae6576f93f445c6b8166f76f5505a"
CHUNK = 1 << 14


@contextmanager
def serving(root: Path, bytes_per_second: float = float("inf")):
    """Serves root/datasets/OWNER/NAME and root/models/OWNER/NAME. Yields (address, the files that were read so far)."""
    read: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            fields = json.loads(body) if body.startswith("{") else parse_qs(body)
            _, kind, owner, name, *_ = urlsplit(self.path).path.strip("/").split("/")
            folder = root / kind / owner / name
            known = {entry["path"]: entry for entry in tree(folder)}
            self.say_json([known[path] for path in fields["paths"] if path in known])

        def answer(self, with_body: bool):
            parts = urlsplit(self.path).path.strip("/").split("/")
            if parts[0] == "api":
                _, kind, owner, name, *rest = parts if len(parts) > 3 else [*parts, "", ""]
                folder = root / kind / owner / name
                if not owner or not folder.is_dir():
                    return self.say(404, b"", {"X-Error-Code": "RepoNotFound"})
                if rest[:1] == ["tree"]:
                    under = "/".join(rest[2:])
                    return self.say_json([entry for entry in tree(folder) if entry["path"].startswith(under)])
                siblings = [{"rfilename": entry["path"]} for entry in tree(folder) if entry["type"] == "file"]
                common = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                return self.say_json(common | {"gated": False, "downloads": 0, "likes": 0, "disabled": False})
            kind = "datasets" if parts[0] == "datasets" else "models"
            owner, name, _, _, *path = parts[1:] if kind == "datasets" else parts
            file = root / kind / owner / name / "/".join(path)
            if not file.is_file():
                return self.say(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            content = file.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            status, begin = 200, 0
            if wanted := self.headers.get("Range"):
                begin, _, end = wanted.removeprefix("bytes=").partition("-")
                begin, whole = int(begin), len(content)
                content = content[begin : int(end) + 1 if end else None]
                status = 206
                headers["Content-Range"] = f"bytes {begin}-{begin + len(content) - 1}/{whole}"
            if with_body:
                read.append(f"{owner}/{name}/{'/'.join(path)}")
            return self.say(status, content, headers, with_body)

        def say_json(self, content):
            self.say(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def say(self, status: int, content: bytes, headers: dict[str, str], with_body: bool = True):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            for begin in range(0, len(content) if with_body else 0, CHUNK):
                self.wfile.write(content[begin : begin + CHUNK])
                time.sleep(CHUNK / bytes_per_second)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", read
    finally:
        server.shutdown()
        server.server_close()


def tree(folder: Path) -> list[dict]:
    """The files and folders of a repository as the hub lists them."""
    entries = []
    for path in sorted(folder.rglob("*")):
        entry = {"path": str(path.relative_to(folder)), "oid": "0" * 40, "size": 0, "type": "directory"}
        if path.is_file():
            entry |= {"type": "file", "size": path.stat().st_size}
        entries.append(entry)
    return entries
