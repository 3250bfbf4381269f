"""What this project's servers share: a socket, bodies of limited size, refusals, a run.

Needs starlette and uvicorn (requirements-serve.txt); only servers import it.
"""

import signal
import socket

from pt_app.core.errors import UserError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
except ImportError as error:
    raise UserError(f"{error}: pip install -r requirements-serve.txt") from error

# A page asks for nothing but its server's answers; its script and style stand in it.
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
PAGE_HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
MAX_BODY = 2**20  # bytes of a request
EVERYWHERE = ("0.0.0.0", "::")
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


class RefusedError(Exception):
    """A request that is answered with an error: its message, status and OpenAI's code.

    Where the code is a field of the request, `key` is the name or number of what is wrong in it.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        key: str | int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.key = message, status, code, key


async def body(request: Request) -> bytes:
    """Read the body of a request; refuses one of another type, or of more than `MAX_BODY` bytes.

    A page of another origin may send any type but JSON without asking (CORS).
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().casefold() != "application/json":
        raise RefusedError("the Content-Type is not application/json", 415)
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise RefusedError(f"the request has more than {MAX_BODY} bytes", 413)
    return content


def known_hosts(host: str) -> Middleware:
    """Refuse requests to host names that are not ours.

    A page of another origin cannot ask anything: its host name is not ours even where its address
    is (DNS rebinding).
    """
    hosts = ["*"] if host in EVERYWHERE else [*LOOPBACK, host]
    return Middleware(TrustedHostMiddleware, allowed_hosts=hosts)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; raises UserError where that cannot be had.

    Connections inherit TCP_NODELAY. asyncio sets it only where the protocol of a socket is named
    (base_events.py, _set_nodelay), which that of `create_server` is not: the body of each answer
    then waited some 40 ms for the client to acknowledge its head.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.create_server(found[0][4][:2], family=found[0][0])
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:  # the latter for a name like "a..b"
        reason = str(getattr(error, "strerror", None) or error).lower()
        problem = f"{host}:{port} cannot be listened at ({reason})"
        raise UserError(f"{problem}: choose another --port or --host") from error


def url_of(listening: socket.socket, host: str) -> str:
    """Return the URL at which this machine reaches a server."""
    here = "127.0.0.1" if host in EVERYWHERE else host
    return f"http://{f'[{here}]' if ':' in here else here}:{listening.getsockname()[1]}"


def run(application: Starlette, listening: socket.socket, patience: int, ready: str) -> None:
    """Print `ready` and answer requests until SIGTERM or Ctrl-C.

    Requests that are under way then have `patience` seconds to end.
    """
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=patience,
    )
    server = uvicorn.Server(config)

    # Whoever reads `ready` may stop the server at once. uvicorn takes the signals a little later,
    # and raises them again at its end; an exception from a handler would end in whatever runs then.
    def stop(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        print(ready, flush=True)
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
