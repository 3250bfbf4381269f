"""A stand-in for the servers of W&B and Weave on the loopback: it records what it is sent.

It knows the endpoints that wandb 0.31 and weave 0.54 use. `dies_after` closes it for good once
so many requests for Weave calls have come, as a server that goes away in the middle; `status`
401 refuses every key.
"""

import gzip
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEAM = {"id": "e", "name": "team"}
PROJECT = {"id": "p", "name": "judge", "entityName": "team", "entity": TEAM, "artifact": None}
VIEWER = {
    "id": "1",
    "entity": "team",
    "username": "someone",
    "flags": "{}",
    "teams": {"edges": []},
    "defaultEntity": {"name": "team"},
}


TEXTS = ("The old house", "A casa velha", "gender agreement", "Feedback: good")


def prediction(row: int) -> dict[str, Any]:
    """A line of predictions.jsonl that holds all of TEXTS."""
    return {
        "id": f"r{row}",
        "group": TEXTS[0],
        "model": "adapter" if row % 2 else "base",
        "source": TEXTS[0],
        "candidate": TEXTS[1],
        "label": {"verdict": 7, "issues": [TEXTS[2]], "feedback": TEXTS[3]},
        "verdict": 6,
        "probabilities": {"6": 0.75, "7": 0.25},
        "verdict_mass": 0.9,
        "answer": f"Score: 6/10\n{TEXTS[3]}",
    }


class TrackingServer(ThreadingHTTPServer):
    """Use it in a `with`; `url` is its address, `requests` what came: (path, body)."""

    daemon_threads = True

    def __init__(self, dies_after: int | None = None, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.dies_after = dies_after
        self.status = status
        self.dead = False
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "TrackingServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self.dead:
            self.shutdown()
        self.server_close()

    def die(self) -> None:
        """Refuse every connection from now on."""
        self.dead = True
        threading.Thread(target=lambda: (self.shutdown(), self.server_close())).start()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up, and the end of this server, are part of the tests."""

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def calls(self, op: str) -> list[dict[str, Any]]:
        """Finished calls of one operation, such as "Evaluation.predict_and_score"."""
        calls = []
        for path, body in self.requests:
            if path.endswith("/calls/complete"):
                calls += [call for call in body["batch"] if op in call["op_name"]]
        return calls

    def text(self) -> str:
        """Everything that came, as one text."""
        return json.dumps(self.requests, default=repr)


class _Handler(BaseHTTPRequestHandler):
    server: TrackingServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._take()
        if "server_info" in self.path:
            self._answer(
                {"min_required_weave_python_version": "0.0.0", "trace_server_version": "9.9.9"}
            )
        else:
            self._answer({})

    def do_PUT(self) -> None:
        self._take()
        self._answer({})

    def do_POST(self) -> None:
        body = self._take()
        if self.path == "/graphql":
            self._answer({"data": graphql(self.server.url, body)})
        elif "file_stream" in self.path:
            self._answer({"exitcode": None, "limits": {}})
        elif self.path.startswith("/traces"):
            self._answer(weave_answer(self.path, body))
        else:
            self._answer({})

    def _take(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        try:
            body = json.loads(raw or b"null")
        except ValueError:
            body = raw.decode(errors="replace")
        server = self.server
        with server.lock:
            calls = sum("/call" in path for path in server.paths) + ("/call" in self.path)
            if server.dies_after is not None and calls > server.dies_after:
                if not server.dead:
                    server.die()
                self.close_connection = True
                raise ConnectionAbortedError
            server.requests.append((self.path, body))
        return body

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def weave_answer(path: str, body: Any) -> Any:
    digest = hashlib.sha256(json.dumps(body, default=repr).encode()).hexdigest()
    if path.endswith("/call/start"):
        return {"id": body["start"]["id"], "trace_id": body["start"]["trace_id"]}
    if path.endswith("/table/create"):
        return {"digest": digest, "row_digests": [digest for _ in body["table"]["rows"]]}
    if "create" in path:
        return {"digest": digest, "id": digest}
    return {}


def graphql(url: str, body: Any) -> Any:
    """Answers to every question that wandb and weave ask; what a query names, it finds."""
    variables = body.get("variables") or {}
    name, files = variables.get("name"), variables.get("files") or []
    bucket = {"id": "1", "name": name, "displayName": name, "config": "{}", "project": PROJECT}
    artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s"}}
    return {
        "viewer": VIEWER,
        "project": PROJECT,
        "upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True},
        "createArtifact": {"artifact": artifact},
        "createRunFiles": {
            "runID": "1",
            "uploadHeaders": [],
            "files": [{"name": file, "uploadUrl": f"{url}/upload/{file}"} for file in files],
        },
    }
