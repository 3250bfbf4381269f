"""Vast's interface on the loopback: its offers, its instances and their states, and its faults."""

import json
import re
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

Body = dict[str, Any]
ACCOUNT_KEY = "account-key-0123456789abcdef"
START = ["", "created", "loading", "running"]


def offer(id: int, **changes: Any) -> Body:
    """An offer as the search gives it: a GPU of 24 GiB at 40 cents."""
    return {
        "id": id,
        "machine_id": id + 1000,
        "gpu_name": "RTX 4090",
        "gpu_ram": 24564,
        "num_gpus": 1,
        "total_flops": 82.0,
        "dph_total": 0.4,
        "storage_cost": 0.15,
        "inet_down_cost": 0.01,
        "inet_up_cost": 0.02,
        "inet_down": 800.0,
        "reliability": 0.995,
        "cuda_max_good": 13.0,
        "compute_cap": 890,
        "direct_port_count": 10,
        "disk_space": 500.0,
        "flops_per_dphtotal": 200.0,
        "verified": True,
        "rentable": True,
        "rented": False,
        "external": False,
    } | changes


@dataclass
class Faults:
    """What goes wrong; a count goes down to 0 as it does."""

    gone: set[int] = field(default_factory=set)
    """Offers that somebody else has taken."""
    refuse: tuple[int, str] | None = None
    """Status and body of every create."""
    no_answer: str = ""
    """The connection of a create is cut: "created" after an instance was made, "not" before."""
    hidden: int = 0
    """Lists that do not show a new instance yet."""
    destroys: int = 0
    """Destroys that end with 500."""
    ignored: int = 0
    """Destroys that say yes and do nothing."""
    lists: int = 0
    """Lists that end with 500."""
    states: dict[int, list[str]] = field(default_factory=dict)
    """Machine -> the states that its instance shows, one per list; the last stays."""
    credits: list[float] = field(default_factory=lambda: [50.0])
    """The balance, one per request; the last stays."""


class VastServer:
    """Serves `offers`; keeps every request. `run_onstart` starts instances' scripts in `home`."""

    def __init__(self, *offers: Body, faults: Faults | None = None) -> None:
        self.offers = list(offers)
        self.faults = faults or Faults()
        self.instances: dict[int, Body] = {}
        self.requests: list[tuple[str, str, Body, str]] = []
        self.variables: dict[str, str] = {}
        self.address: tuple[str, int] | None = None
        self.home: Path | None = None
        self.started: list[subprocess.Popen[bytes]] = []
        self.destroyed: list[int] = []
        self.on_create: Callable[[], None] | None = None
        self.on_destroy: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._server = _Quiet(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "VastServer":
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

    def sent(self, method: str, pattern: str) -> list[Body]:
        """The bodies of the requests of this kind."""
        return [b for m, path, b, _ in self.requests if m == method and re.search(pattern, path)]

    def answer(self, method: str, path: str, body: Body, key: str) -> tuple[int, Body] | None:
        """Status and body; None cuts the connection."""
        with self._lock:
            self.requests.append((method, path, body, key))
            number = int((re.search(r"/(\d+)/", path) or ["0", "0"])[1])
            if key != ACCOUNT_KEY and key != self.instances.get(number, {}).get("own_key"):
                return 401, {"success": False, "error": "auth_error"}
            if path.endswith("/bundles/"):
                return 200, {"offers": self._search(body)}
            if "/asks/" in path:
                return self._create(number, body)
            if path.startswith("/api/v1/instances"):
                return self._list()
            if path.endswith("/users/current"):
                credits = self.faults.credits
                return 200, {"id": 1, "credit": credits.pop(0) if credits[1:] else credits[0]}
            if path.endswith("/secrets/"):
                return 200, {"secrets": self.variables}
            return self._instance(method, path, number, body)

    def _search(self, query: Body) -> list[Body]:
        tests = {
            "gte": lambda a, b: a >= b,
            "lte": lambda a, b: a <= b,
            "eq": lambda a, b: a == b,
        }
        rows = [
            row
            for row in self.offers
            if all(
                tests[name](row[key], value)
                for key, wanted in query.items()
                if isinstance(wanted, dict)
                for name, value in wanted.items()
            )
        ]
        name, direction = query["order"][0]
        rows.sort(key=lambda row: row[name], reverse=direction == "desc")
        return rows[: query["limit"]]

    def _create(self, number: int, body: Body) -> tuple[int, Body] | None:
        faults = self.faults
        if faults.refuse:
            return faults.refuse[0], {"success": False, "error": faults.refuse[1]}
        chosen = next((row for row in self.offers if row["id"] == number), None)
        if chosen is None or number in faults.gone:
            return 400, {"success": False, "error": "invalid_args", "msg": "no_such_ask"}
        if faults.no_answer == "not":
            return None
        id = 7000 + len(self.instances) + len(self.destroyed)
        machine = chosen["machine_id"]
        self.instances[id] = chosen | {
            "id": id,
            "label": body["label"],
            "states": list(faults.states.get(machine, START)),
            "own_key": f"own-key-of-{id}",
            "onstart": body["onstart"],
            "hidden": faults.hidden,
        }
        if self.on_create:
            self.on_create()
        if faults.no_answer == "created":
            return None
        return 200, {"success": True, "new_contract": id, "instance_api_key": "own"}

    def _list(self) -> tuple[int, Body]:
        if self.faults.lists:
            self.faults.lists -= 1
            return 500, {"success": False}
        rows = []
        for instance in self.instances.values():
            if instance["hidden"]:
                instance["hidden"] -= 1
                continue
            states = instance["states"]
            status = states.pop(0) if states[1:] else states[0]
            if status == "running":
                self._start(instance)
            row = {
                "id": instance["id"],
                "label": instance["label"],
                "actual_status": status or None,
            }
            row |= {name: instance[name] for name in ("machine_id", "gpu_name", "dph_total")}
            row |= {"status_msg": "as the host says", "start_date": None, "extra_env": []}
            if status == "running" and self.address:
                row |= {"ssh_host": self.address[0], "ssh_port": self.address[1]}
            rows.append(row)
        return 200, {"success": True, "instances": rows, "next_token": None}

    def _instance(self, method: str, path: str, number: int, body: Body) -> tuple[int, Body]:
        instance = self.instances.get(number)
        if instance is None:
            return 404, {"success": False, "error": "no_such_instance"}
        if path.endswith("/ssh/"):
            return 200, {"success": True, "msg": "attached"}
        if method == "PUT":
            instance["states"] = [body["state"]]
            return 200, {"success": True}
        if self.faults.destroys:
            self.faults.destroys -= 1
            return 500, {"success": False}
        if self.faults.ignored:
            self.faults.ignored -= 1
            return 200, {"success": True}
        self.destroyed.append(number)
        del self.instances[number]
        if self.on_destroy:
            self.on_destroy()
        return 200, {"success": True}

    def _start(self, instance: Body) -> None:
        """Run the instance's script once, as its container would."""
        if self.home is None or instance.get("started"):
            return
        instance["started"] = True
        keys = {"CONTAINER_ID": str(instance["id"]), "CONTAINER_API_KEY": instance["own_key"]}
        self.started.append(
            subprocess.Popen(
                ["bash", "-c", instance["onstart"]],
                env={"PATH": "/usr/bin:/bin", "HOME": str(self.home)} | keys,
                stdin=subprocess.DEVNULL,
            )
        )


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that hang up: some tests kill them."""


def _handler(server: VastServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            path = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(path.query).items()}
            key = self.headers.get("authorization", "").removeprefix("Bearer ")
            answer = server.answer(self.command, path.path, body or query, key)
            if answer is None:
                self.close_connection = True
                return
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Tests read requests, not lines."""

    return Handler
