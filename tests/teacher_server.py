"""A chat endpoint on the loopback that answers, and misbehaves where it is told to."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = dict[str, Any]
Answer = tuple[int, dict[str, str], bytes | None]
"""Status, headers, body; a body of None cuts the connection in the middle of the answer."""


def reply(text: str, prompt: int = 10, answer: int = 5, usage: bool = True) -> Answer:
    """An answer as OpenAI-compatible endpoints give it."""
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
    }
    body: Body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    body["choices"] = [choice]
    if usage:
        total = prompt + answer
        body["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": total,
        }
    return 200, {}, json.dumps(body).encode()


def failure(status: int, message: str = "no", **headers: str) -> Answer:
    """An error as OpenAI-compatible endpoints give it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message}}).encode()


CUT: Answer = (200, {}, None)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hung up: some tests kill them."""


class TeacherServer:
    """Serves `answer(body, number)`; keeps each request with its arrival, and its answer's status.

    `most` is the largest number of requests that were under way at once.
    """

    def __init__(self, answer: Callable[[Body, int], Answer]) -> None:
        self.answer = answer
        self.requests: list[tuple[float, Body]] = []
        self.keys: list[str] = []
        self.answered = 0
        self.most = self._now = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "TeacherServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.requests.append((time.monotonic(), body))
            self.keys.append(handler.headers.get("authorization", ""))
            number = len(self.requests)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            status, headers, content = self.answer(body, number)
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(content or b"") or 1000))
            handler.end_headers()
            handler.wfile.write(content if content is not None else b'{"id": "x", "cho')
            if content is None:
                handler.close_connection = True
            elif status == 200:
                with self._lock:
                    self.answered += 1
        finally:
            with self._lock:
                self._now -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
