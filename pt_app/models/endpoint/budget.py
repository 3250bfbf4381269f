"""What an endpoint may be asked: requests and tokens per minute, and dollars in all."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from pt_app.models.endpoint.options import RequestOptions

WINDOW = 60.0
MAX_SLEEP = 0.5  # so that a request that waits notices soon that the budget is closed


class MoneySpentError(Exception):
    """The next request could cost more than what is left, or no further one is to be made."""


@dataclass
class Usage:
    """Tokens of a prompt and of its answer."""

    prompt: int = 0
    answer: int = 0

    @property
    def total(self) -> int:
        """Both together, as tokens per minute are counted."""
        return self.prompt + self.answer


@dataclass(kw_only=True, eq=False)
class Budget:
    """Holds requests back until rates allow them, and ends where the money would.

    Rates are over a sliding window (`window` seconds); tokens are estimated before a request and
    corrected by its usage. `spent` is in dollars. A limit of 0 is none.
    """

    rpm: int = 0
    tpm: int = 0
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float = 0.0
    window: float = WINDOW
    spent: float = field(default=0.0, init=False)
    _reserved: float = field(default=0.0, init=False)
    _asked: deque[list[float]] = field(default_factory=deque, init=False)  # [when, tokens]
    _paused_until: float = field(default=0.0, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _closed: bool = field(default=False, init=False)

    @classmethod
    def of(cls, options: RequestOptions) -> "Budget":
        """Make the budget of a command's flags."""
        names = ("rpm", "tpm", "price_in", "price_out", "max_cost")
        return cls(**{name: getattr(options, name) for name in names})

    def close(self) -> None:
        """Let no further request be made; those in flight are finished."""
        self._closed = True

    def cost(self, usage: Usage) -> float:
        """Return the dollars of so many tokens; prices are per million tokens."""
        return (usage.prompt * self.price_in + usage.answer * self.price_out) / 1e6

    def pause(self, seconds: float) -> None:
        """Hold all requests back for so long: the endpoint asked one of them to wait."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def acquire(self, estimate: Usage) -> list[float]:
        """Wait until such a request may be made; raises MoneySpentError if it may never be."""
        async with self._turn:  # first come, first served
            while (wait := self._wait(estimate)) > 0 and not self._closed:
                await asyncio.sleep(min(wait, MAX_SLEEP))
            cost = self.cost(estimate)
            total = self.spent + self._reserved + cost
            if self._closed or (self.max_cost and total > self.max_cost):
                raise MoneySpentError
            self._reserved += cost
            entry = [time.monotonic(), float(estimate.total)]
            self._asked.append(entry)
            return entry

    def settle(self, entry: list[float], estimate: Usage, usage: Usage | None) -> None:
        """Put what a request really took in place of its estimate; None: it was not answered."""
        self._reserved -= self.cost(estimate)
        if usage is not None:
            entry[1] = float(usage.total)
            self.spent += self.cost(usage)

    def _wait(self, estimate: Usage) -> float:
        """Return the seconds until the window has room; 0 where it has."""
        now = time.monotonic()
        while self._asked and self._asked[0][0] <= now - self.window:
            self._asked.popleft()
        until = [self._paused_until - now]
        if self.rpm and len(self._asked) >= self.rpm:
            until.append(self._asked[len(self._asked) - self.rpm][0] + self.window - now)
        # A request larger than the whole budget is made when nothing else is in the window.
        if self.tpm and self._asked:
            over = sum(tokens for _, tokens in self._asked) + estimate.total - self.tpm
            for when, tokens in self._asked:
                if over <= 0:
                    break
                over -= tokens
                until.append(when + self.window - now)
        return max(*until, 0.0)
