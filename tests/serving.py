"""Servers in a thread of the tests' process: any application, and `judge serve`."""

import http.client
import json
import threading
from typing import Any, Self

import uvicorn
from openai import OpenAI
from starlette.applications import Starlette

from pt_app.core.http_server import listen
from pt_app.judge import Judge
from pt_app.serving.server import Server


class Loopback:
    """An application that answers on the loopback."""

    def __init__(self, application: Starlette) -> None:
        self.app, self.socket = application, listen("127.0.0.1", 0)
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(uvicorn.Config(self.app, log_level="warning"))
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self.socket],))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()


class Running(Loopback):
    """A server of some judges."""

    def __init__(self, *judges: Judge, strict: bool = False, key: str | None = None) -> None:
        self.server, self.key = Server(judges, strict), key
        super().__init__(self.server.application("127.0.0.1", key))

    @property
    def client(self) -> OpenAI:
        key = self.key or "none"
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def ask(
        self, method: str, path: str, body: bytes | object = b"", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request; what is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} if method == "POST" else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, sent, named)
        response = connection.getresponse()
        answer = response.status, response.read(), dict(response.getheaders())
        connection.close()
        return answer

    def post(self, path: str, body: object) -> Any:
        """Return the JSON of an answer that must be one."""
        status, content, _ = self.ask("POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def judged(self, *rows: object) -> list[dict[str, Any]]:
        judgements: list[dict[str, Any]] = self.post("/v1/judgements", {"rows": rows})["judgements"]
        return judgements
