"""Decide once whether tracking goes online, offline or nowhere, and why."""

import importlib.util
import os
import socket
import threading
import urllib.request
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from pt_app.core.errors import UserError
from pt_app.core.settings import read_tracking

CONNECT_SECONDS = 2.0
TENSORBOARD_REMEDY = "pip install -r requirements-tensorboard.txt"


@dataclass(frozen=True)
class Access:
    """What tracking may do: where it sends to, with which key, and the reason for it."""

    mode: Literal["online", "offline", "off"]
    reason: str
    base_url: str = ""
    key: str | None = field(default=None, repr=False)


def check_tracking(tracking: str) -> None:
    """Refuse a value of --tracking that cannot be followed, before a run has written anything.

    Raises:
        UserError: for `online` without a key, and for `tensorboard` without its package.
    """
    mode, sinks = read_tracking(tracking)
    if "tensorboard" in sinks and not has_tensorboard():
        raise UserError(f"--tracking {tracking}: tensorboardX is missing: {TENSORBOARD_REMEDY}")
    if mode == "online":
        resolve_access(tracking)


def has_tensorboard() -> bool:
    """Return whether the package that writes event files of TensorBoard is installed."""
    return importlib.util.find_spec("tensorboardX") is not None


def resolve_access(tracking: str) -> Access:
    """Decide where W&B and Weave send to; never prompts, and waits for at most 4 s.

    `auto` goes online if there is a key and the server answers. WANDB_MODE, which users of W&B
    know, narrows `auto`.

    Args:
        tracking: the value of --tracking.

    Raises:
        UserError: for an unknown value, and for `online` without a key.
    """
    mode, _ = read_tracking(tracking)
    wish, reason = str(mode), f"--tracking {tracking}"
    if mode == "auto":
        wish = os.environ.get("WANDB_MODE", "")
        reason = f"WANDB_MODE={wish}"
    if wish in ("off", "disabled"):
        return Access("off", reason)
    # wandb reads both when it is imported or set up: no lines of its own, no crash reports.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if wish in ("offline", "dryrun"):
        return Access("offline", reason)
    base_url, key, problem = find_key()
    if key is None and mode == "online":
        raise UserError(
            f"--tracking {tracking}: {problem}: set WANDB_API_KEY, or run `wandb login`, "
            "or choose --tracking offline"
        )
    host = urlsplit(base_url).hostname or base_url
    if key and not reachable(base_url):
        problem = f"{host} does not answer within {CONNECT_SECONDS:.0f} s"
    elif key and _is_refused(base_url, key):
        problem = f"{host} refuses the key"
    if problem:
        return Access("offline", problem, base_url)
    return Access("online", f"key found, {host} answers", base_url, key)


def find_key() -> tuple[str, str | None, str]:
    """Find the API key by W&B's own rules, without a prompt.

    Returns:
        The server's address, the key or None, and why there is none ("" if there is one).
    """
    base_url = ""
    try:
        import wandb
        from wandb.sdk.lib import wbauth

        base_url = str(wandb.sdk.wandb_setup.singleton().settings.base_url)
        auth = wbauth.authenticate_session(
            host=base_url, source="tracking", prompt=False, update_session=False
        )
    except Exception as error:  # a malformed key, an unreadable settings file
        return base_url, None, f"the W&B key cannot be used ({describe(error)})"
    key = getattr(auth, "api_key", None)
    return base_url, key, "" if key else f"no W&B key for {urlsplit(base_url).hostname}"


def _is_refused(base_url: str, key: str) -> bool:
    """Return whether the server refuses the key; no other answer, nor a lack of one, counts."""
    headers = {"Content-Type": "application/json"}
    headers["Authorization"] = f"Basic {b64encode(f'api:{key}'.encode()).decode()}"
    question = urllib.request.Request(f"{base_url}/graphql", b'{"query": "{viewer{id}}"}', headers)
    try:
        urllib.request.urlopen(question, timeout=CONNECT_SECONDS).close()
    except Exception as error:
        return getattr(error, "code", 0) in (401, 403)
    return False


def describe(error: Exception) -> str:
    """Return the first line of an error's message: later ones may quote settings, or a key."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def reachable(url: str, seconds: float = CONNECT_SECONDS) -> bool:
    """Return whether a TCP connection to the host of `url`, or to its proxy, opens in time.

    It is tried in a thread, since a DNS lookup has no timeout.
    """
    try:
        address = urlsplit(url)
        proxy = urllib.request.getproxies().get(address.scheme)
        if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
            address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = address.port or (443 if address.scheme == "https" else 80)
    except ValueError:  # a malformed proxy or address
        return False
    connected, ended = threading.Event(), threading.Event()

    def connect() -> None:
        with suppress(OSError):
            socket.create_connection((address.hostname or "", port), timeout=seconds).close()
            connected.set()
        ended.set()

    threading.Thread(target=connect, daemon=True).start()
    ended.wait(seconds)  # a refusal ends it at once
    return connected.is_set()
