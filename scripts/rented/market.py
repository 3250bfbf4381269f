"""Vast's interface: offers, instances, the balance. Every call that can cost money is here.

The package's SDK is used rather than its command line: `vastai destroy` waits for a yes, and ends
with 0 on some failures. Both send a create up to three times where no answer comes, unless told
otherwise, and each of these can be a paid instance.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from pt_app.core.errors import UserError

CONSOLE = "https://cloud.vast.ai/instances/"
URL = "https://console.vast.ai"
# States that never become running (SkyPilot's list); frozen is billed like running.
ALIVE_NEVER = ("exited", "stopped", "frozen", "unknown", "offline")
# A variable whose name holds one of these is taken for a key.
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class OfferGoneError(Exception):
    """The offer was refused: nothing was created."""


class AnswerLostError(Exception):
    """Create was sent and no answer came: an instance may be there."""


class UnreachableError(UserError):
    """Vast does not answer, or not in a known form."""


@dataclass(frozen=True)
class Instance:
    """What Vast says of an instance."""

    id: int
    label: str
    status: str  # `actual_status`; empty where Vast has none yet
    message: str
    gpu: str
    hourly: float  # dollars per hour
    # Host and port for SSH: the machine itself first, then Vast's proxy.
    addresses: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Instance":
        """Read a row of the list; fields that are not there yet are empty."""
        addresses = []
        ports = row.get("ports")
        mapped = ports.get("22/tcp") if isinstance(ports, dict) else None
        if mapped and row.get("public_ipaddr"):
            addresses.append((str(row["public_ipaddr"]).strip(), int(mapped[0]["HostPort"])))
        if row.get("ssh_host") and row.get("ssh_port"):
            addresses.append((str(row["ssh_host"]).strip(), int(row["ssh_port"])))
        return cls(
            id=int(row["id"]),
            label=str(row.get("label") or ""),
            status=str(row.get("actual_status") or "").lower(),
            message=" ".join(str(row.get("status_msg") or "").split())[:200],
            gpu=str(row.get("gpu_name") or "?"),
            hourly=float(row.get("dph_total") or 0.0),
            addresses=tuple(addresses),
        )


class Market:
    """Vast as one account sees it. VAST_URL names another server, as for the package itself.

    Raises UserError without the package or a key.
    """

    def __init__(self) -> None:
        try:
            from vastai import VastAI
        except ImportError:
            raise UserError("vastai is missing: pip install -r requirements-vast.txt") from None
        self.url = (os.environ.get("VAST_URL") or URL).rstrip("/")
        try:
            self._vast = VastAI(server_url=self.url)
        except RuntimeError:
            raise UserError(
                "no Vast key: make one at https://cloud.vast.ai/manage-keys/, then "
                "`vastai set api-key KEY` or VAST_API_KEY=KEY"
            ) from None
        self._vast.client.timeout = 30
        # The account's key, to be looked for in whatever leaves this machine.
        self.key = str(self._vast.client.api_key)
        self._once = VastAI(self.key, self.url, retry=1)  # for a create, see above
        self._once.client.timeout = 60

    def offers(self, query: Mapping[str, Any], order: str, disk_gb: float) -> list[dict[str, Any]]:
        """Search at most 64 offers, priced with `disk_gb` of storage; `order`: "dph_total asc"."""
        with _understood():
            rows: list[dict[str, Any]] = self._vast.search_offers(
                dict(query), order=[order.split()], limit=64, storage=disk_gb
            )
            return rows

    def create(self, offer: int, **options: Any) -> int:
        """Rent an offer and return the instance's id. The request is sent once.

        Raises:
            OfferGoneError: where Vast refuses the offer.
            AnswerLostError: where it is not known what became of the request.
            UserError: where Vast would refuse every offer (key, credit).
        """
        try:
            answer = self._once.create_instance(offer, **options)
        except requests.HTTPError as error:
            code, text = _status(error)
            if code >= 500 or code == 408:
                raise AnswerLostError(f"{code} {text}") from None
            if code in (401, 403, 429) or "insufficient_credit" in text:
                why = f"Vast refuses to rent ({code} {text}): nothing was rented"
                raise UserError(why) from None
            raise OfferGoneError(f"{code} {text}") from None
        except (requests.RequestException, ValueError) as error:
            raise AnswerLostError(type(error).__name__) from None
        if answer.get("success") is False:
            raise OfferGoneError(str(answer.get("msg") or answer.get("error"))[:200])
        if not isinstance(answer.get("new_contract"), int):
            raise AnswerLostError("no id in the answer")
        return int(answer["new_contract"])

    def instances(self) -> list[Instance]:
        """List all instances of the account, in whatever state.

        Not with `show_instances`, which fails on a row that has no start date yet.
        """
        order = [{"col": "id", "dir": "asc"}]
        params: dict[str, Any] = {"select_filters": {}, "order_by": order, "limit": 25}
        instances: list[Instance] = []
        with _understood():
            while True:
                page = self._vast.show_instances_v1(params)
                instances += [Instance.of(row) for row in page["instances"]]
                if not page.get("next_token"):
                    return instances
                params["after_token"] = page["next_token"]

    def destroy(self, instance: int) -> None:
        """Ask for the destruction; an instance that Vast does not know (404) counts as gone."""
        with _understood():
            try:
                answer = self._vast.destroy_instance(instance)
            except requests.HTTPError as error:
                if _status(error)[0] != 404:
                    raise
                return
            if isinstance(answer, dict) and answer.get("success") is False:
                raise UnreachableError(f"Vast refuses to destroy instance {instance}")

    def attach_key(self, instance: int, public_key: str) -> None:
        """Let the owner of `public_key` in, on this instance alone."""
        with _understood():
            self._vast.attach_ssh(instance, public_key)

    def credit(self) -> float:
        """Return the dollars that the account can still spend."""
        with _understood():
            return float(self._vast.show_user().get("credit") or 0.0)

    def secret_variables(self) -> list[str]:
        """List the account's variables that look like keys: Vast hands them to every host."""
        with _understood():
            names = self._vast.show_env_vars()
            return sorted(n for n in names if any(word in n.upper() for word in SECRET_WORDS))


@contextmanager
def _understood() -> Iterator[None]:
    """Turn the errors of a call that may be repeated into UserErrors.

    The package itself sends such a call three times.
    """
    try:
        yield
    except requests.HTTPError as error:
        code, _ = _status(error)
        if code in (401, 403):
            raise UserError(
                f"Vast refuses the key ({code}): look at `vastai show user`, or make another "
                "at https://cloud.vast.ai/manage-keys/"
            ) from None
        raise UnreachableError(f"Vast answers {code}: try again in a minute") from None
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreachableError(
            f"Vast does not answer as it should ({type(error).__name__}): try again in a minute"
        ) from None


def _status(error: Any) -> tuple[int, str]:
    """Give the status code of a requests.HTTPError and the start of the server's message."""
    return error.response.status_code, " ".join(error.response.text.split())[:200]
