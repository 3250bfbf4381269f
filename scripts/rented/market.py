"""Vast's interface: offers, instances, the balance. Every call that can cost money is here.

The package's Python functions are used rather than its command line: `vastai destroy` waits for a
yes, ends with 0 on some failures, and both it and the SDK's default client send a create up to
three times where no answer comes, each of which can be a paid instance.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pt_app.core.errors import UserError

CONSOLE = "https://cloud.vast.ai/instances/"
URL = "https://console.vast.ai"
ALIVE_NEVER = ("exited", "stopped", "frozen", "unknown", "offline")
"""States that never become running (SkyPilot's list); frozen is billed like running."""
# What a name of a variable must hold to be taken for a key.
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class OfferGoneError(Exception):
    """The offer was refused: nothing was created."""


class AnswerLostError(Exception):
    """Create was sent and no answer came: an instance may be there."""


class UnreachableError(UserError):
    """Vast does not answer, or not in a form that is known."""


@dataclass(frozen=True)
class Instance:
    """What Vast says of an instance."""

    id: int
    label: str
    status: str
    """`actual_status`; empty where Vast has none yet."""
    message: str
    machine: int | None
    gpu: str
    dph: float
    """Dollars an hour."""
    addresses: tuple[tuple[str, int], ...]
    """Host and port for SSH: the machine itself first, then Vast's proxy."""

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
            machine=row.get("machine_id"),
            gpu=str(row.get("gpu_name") or "?"),
            dph=float(row.get("dph_total") or 0.0),
            addresses=tuple(addresses),
        )


class Market:
    """Vast as one account sees it. VAST_URL names another server, as for the package itself.

    Raises UserError without the package or a key.
    """

    def __init__(self) -> None:
        try:
            from vastai import VastAI
            from vastai.api.client import VastClient
        except ImportError:
            raise UserError("vastai is missing: pip install -r requirements-vast.txt") from None
        self.url = (os.environ.get("VAST_URL") or URL).rstrip("/")
        try:
            self._client = VastAI(server_url=self.url).client
        except RuntimeError:
            raise UserError(
                "no Vast key: make one at https://cloud.vast.ai/manage-keys/, then "
                "`vastai set api-key KEY` or VAST_API_KEY=KEY"
            ) from None
        self._client.timeout = 30
        # A create is sent once: see above.
        self._once = VastClient(self._client.api_key, self.url, retry=1, timeout=60)

    @property
    def key(self) -> str:
        """The account's key, to be looked for in whatever leaves this machine."""
        return str(self._client.api_key)

    def offers(self, query: Mapping[str, Any], order: str, disk_gb: float) -> list[dict[str, Any]]:
        """At most 64 offers, prices with `disk_gb` of storage; `order` as in "dph_total asc"."""
        from vastai.api.offers import search_offers

        found: list[dict[str, Any]] = self._ask(
            lambda: search_offers(
                self._client,
                query=dict(query),
                order=[order.split()],
                limit=64,
                storage=disk_gb,
            )
        )
        return found

    def create(self, offer: int, **options: Any) -> int:
        """Rent an offer, once; gives the instance's id.

        Raises OfferGoneError where Vast refuses it, AnswerLostError where it is not known what
        became of it, UserError where no offer would do (key, credit).
        """
        import requests
        from vastai.api.instances import create_instance

        try:
            answer = create_instance(self._once, offer, **options)
        except requests.HTTPError as error:
            code, said = _status(error)
            if code >= 500 or code == 408:
                raise AnswerLostError(f"{code} {said}") from None
            if code in (401, 403, 429) or "insufficient_credit" in said:
                raise UserError(f"Vast refuses to rent ({code} {said}): nothing was rented") from (
                    None
                )
            raise OfferGoneError(f"{code} {said}") from None
        except (requests.RequestException, ValueError) as error:
            raise AnswerLostError(type(error).__name__) from None
        if answer.get("success") is False:
            raise OfferGoneError(str(answer.get("msg") or answer.get("error"))[:200])
        if not isinstance(answer.get("new_contract"), int):
            raise AnswerLostError("no id in the answer")
        return int(answer["new_contract"])

    def instances(self) -> list[Instance]:
        """All instances of the account, in whatever state.

        Not `show_instances`, which fails on a row that has no start date yet.
        """
        from vastai.api.instances import show_instances_v1

        params: dict[str, Any] = {
            "select_filters": {},
            "order_by": [{"col": "id", "dir": "asc"}],
            "limit": 25,
        }
        rows: list[Instance] = []
        while True:
            more, after = self._ask(lambda: _page(show_instances_v1(self._client, params)))
            rows += more
            if not after:
                return rows
            params["after_token"] = after

    def destroy(self, instance: int) -> None:
        """Ask for the destruction; one that Vast does not know (404) is taken as gone."""
        import requests
        from vastai.api.instances import destroy_instance

        def ask() -> None:
            try:
                answer = destroy_instance(self._client, instance)
            except requests.HTTPError as error:
                if _status(error)[0] != 404:
                    raise
                return
            if isinstance(answer, dict) and answer.get("success") is False:
                raise UnreachableError(f"Vast refuses to destroy instance {instance}")

        self._ask(ask)

    def attach_key(self, instance: int, public_key: str) -> None:
        """Let the owner of `public_key` in, on this instance alone."""
        from vastai.api.keys import attach_ssh

        self._ask(lambda: attach_ssh(self._client, instance, public_key))

    def credit(self) -> float:
        """Dollars that the account can still spend."""
        from vastai.api.billing import show_user

        user = self._ask(lambda: show_user(self._client))
        return float(user.get("credit") or 0.0)

    def secret_variables(self) -> list[str]:
        """Names of the account's variables that look like keys: Vast gives them to every host."""
        from vastai.api.auth import show_env_vars

        names = self._ask(lambda: show_env_vars(self._client))
        return sorted(n for n in names if any(word in n.upper() for word in SECRET_WORDS))

    def _ask(self, call: Callable[[], Any]) -> Any:
        """The answer of a call that may safely be sent again; the package sends it three times."""
        import requests

        try:
            return call()
        except requests.HTTPError as error:
            code, _ = _status(error)
            if code in (401, 403):
                raise UserError(
                    f"Vast refuses the key ({code}): look at `vastai show user`, or make another "
                    "at https://cloud.vast.ai/manage-keys/"
                ) from None
            raise UnreachableError(f"Vast answers {code}: try again in a minute") from None
        except (
            requests.RequestException,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ) as error:
            raise UnreachableError(
                f"Vast does not answer as it should ({type(error).__name__}): try again in a minute"
            ) from None


def _page(answer: Any) -> tuple[list[Instance], Any]:
    """The instances of a page, and the token of the next one."""
    return [Instance.of(row) for row in answer["instances"]], answer.get("next_token")


def _status(error: Any) -> tuple[int, str]:
    """The status of a requests.HTTPError and the start of what the server said."""
    return error.response.status_code, " ".join(error.response.text.split())[:200]
