"""A stand-in for the model hub on the loopback: one model of one revision, as HF_ENDPOINT."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_with(name: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of `folder` as model `name`; gives the address and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            about = f"/api/models/{name}"
            if path in (about, f"{about}/revision/main", f"{about}/revision/{REVISION}"):
                return self._send(json.dumps(_about(name, folder)).encode(), {}, body)
            if path.startswith(f"/api/models/{name}/tree/"):
                return self._send(json.dumps(_tree(folder)).encode(), {}, body)
            file = folder / path.rpartition("/")[2]
            if "/resolve/" in path and file.is_file():
                content = file.read_bytes()
                etag = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}
                return self._send(content, headers, body)
            self.send_error(404)
            return None

        def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _about(name: str, folder: Path) -> dict[str, Any]:
    files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
    return {"id": name, "modelId": name, "sha": REVISION, "siblings": files, "tags": []}


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
        for p in sorted(folder.iterdir())
    ]
