"""Vast's interface: offers, instances, the balance. Every call that can cost money is here.

The package's SDK is used rather than its command line: `vastai destroy` waits for a yes, and ends
with 0 on some failures. Both send a create up to three times where no answer comes, unless told
otherwise, and each of these can be a paid instance.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import requests
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from pt_app.core.errors import UserError

CONSOLE = "https://cloud.vast.ai/instances/"
URL = "https://console.vast.ai"
# States that never become running (SkyPilot's list); frozen is billed like running.
ALIVE_NEVER = ("exited", "stopped", "frozen", "unknown", "offline")
# No answer, or one in another form than the package's documentation has it.
MALFORMED = (requests.RequestException, ValueError, KeyError, TypeError, AttributeError)


class OfferGoneError(Exception):
    """The offer was refused: nothing was created."""


class AnswerLostError(Exception):
    """The create was sent and no answer came: an instance may be there."""


class UnreachableError(UserError):
    """Vast does not answer, or not in a known form."""


class Row(BaseModel):
    """A row of Vast's answers; a field that is missing or null has its default."""

    model_config = ConfigDict(coerce_numbers_to_str=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, row: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in row.items() if value is not None}


class Port(Row):
    """A port of the machine that leads to one of the container, as Docker describes it."""

    HostPort: int = 0


class Instance(Row):
    """An instance, with the names that Vast gives its fields."""

    id: int
    label: str = ""
    # In lower case; empty where Vast has no state yet.
    status: Annotated[str, StringConstraints(to_lower=True)] = Field("", alias="actual_status")
    status_msg: str = ""
    gpu_name: str = "?"
    dph_total: float = 0.0  # dollars per hour
    public_ipaddr: str = ""
    ports: dict[str, list[Port] | None] = {}
    ssh_host: str = ""
    ssh_port: int = 0

    @property
    def message(self) -> str:
        """What Vast says of the state, on one line."""
        return " ".join(self.status_msg.split())[:200]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port for SSH: the machine itself first, then Vast's proxy."""
        direct = [(self.public_ipaddr, port.HostPort) for port in self.ports.get("22/tcp") or ()]
        addresses = [*direct[:1], (self.ssh_host, self.ssh_port)]
        return [(host.strip(), port) for host, port in addresses if host and port]


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
        # The account's key, to be looked for in whatever leaves this machine.
        self.key = str(self._vast.client.api_key)
        self._once = VastAI(self.key, self.url, retry=1)  # for a create, see above
        self._vast.client.timeout, self._once.client.timeout = 30, 60  # seconds

    def offers(
        self, query: Mapping[str, object], order: str, disk_gb: float
    ) -> list[dict[str, object]]:
        """Search at most 64 offers, priced with `disk_gb` of storage; `order`: "dph_total asc"."""
        with _understood():
            rows: list[dict[str, object]] = self._vast.search_offers(
                dict(query), order=[order.split()], limit=64, storage=disk_gb
            )
            return rows

    def create(self, offer: int, **options: object) -> int:
        """Rent an offer and return the instance's id. The request is sent once.

        Raises:
            OfferGoneError: where Vast refuses the offer.
            AnswerLostError: where it is not known what became of the request.
            UserError: where Vast would refuse every offer (key, credit).
        """
        try:
            answer = self._once.create_instance(offer, **options)
            if answer.get("success") is False:
                raise OfferGoneError(str(answer.get("msg") or answer.get("error"))[:200])
            return int(answer["new_contract"])
        except MALFORMED as error:
            code, text = _status(error)
            if code in (401, 403, 429) or "insufficient_credit" in text:
                raise UserError(f"Vast refuses to rent ({text}): nothing was rented") from None
            if 400 <= code < 500 and code != 408:
                raise OfferGoneError(text) from None
            raise AnswerLostError(text) from None

    def instances(self) -> list[Instance]:
        """List all instances of the account, in whatever state.

        Not with `show_instances`, which fails on a row that has no start date yet.
        """
        order = [{"col": "id", "dir": "asc"}]
        params: dict[str, object] = {"select_filters": {}, "order_by": order, "limit": 25}
        instances: list[Instance] = []
        with _understood():
            while True:
                page = self._vast.show_instances_v1(params)
                instances += [Instance.model_validate(row) for row in page["instances"]]
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
            return sorted(filter(is_secret, self._vast.show_env_vars()))


def is_secret(name: str) -> bool:
    """Return whether the name of a variable says that it holds a key."""
    return any(word in name.upper() for word in ("KEY", "TOKEN", "SECRET", "PASSWORD"))


@contextmanager
def _understood() -> Iterator[None]:
    """Turn the errors of a call that may be repeated into UserErrors.

    The package itself sends such a call up to three times.
    """
    try:
        yield
    except MALFORMED as error:
        code, text = _status(error)
        if code in (401, 403):
            raise UserError(
                f"Vast refuses the key ({code}): look at `vastai show user`, or make another "
                "at https://cloud.vast.ai/manage-keys/"
            ) from None
        why = f"Vast does not answer as it should ({text}): try again in a minute"
        raise UnreachableError(why) from None


def _status(error: Exception) -> tuple[int, str]:
    """Return the status code of an answer, 0 where none came, and the start of what it says."""
    if not isinstance(error, requests.HTTPError) or error.response is None:
        return 0, type(error).__name__
    code = error.response.status_code
    return code, f"{code} {' '.join(error.response.text.split())[:200]}"
