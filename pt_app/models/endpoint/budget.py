"""What an endpoint may be asked: requests and tokens per minute, and dollars in all."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from pt_app.models.endpoint.options import RequestOptions

MAX_SLEEP = 0.5  # so that a request that waits notices soon that the budget is closed


class MoneySpentError(Exception):
    """The next request could cost more than what is left, or no further one is to be made."""


@dataclass
class Usage:
    """Tokens of a prompt and of its answer."""

    prompt: int = 0
    answer: int = 0


@dataclass(eq=False)
class Budget:
    """Holds requests back until rates allow them, and ends where the money would.

    Rates are over a sliding window (`window` seconds); tokens are estimated before a request and
    corrected by its usage. `spent` is in dollars. A limit of 0 is none.
    """

    limits: RequestOptions
    spent: float = field(default=0.0, init=False)
    _reserved: float = field(default=0.0, init=False)
    _asked: deque[list[float]] = field(default_factory=deque, init=False)  # [when, tokens]
    _paused_until: float = field(default=0.0, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _closed: bool = field(default=False, init=False)
    window = 60.0

    def close(self) -> None:
        """Let no further request be made; those in flight are finished."""
        self._closed = True

    def cost(self, usage: Usage) -> float:
        """Return the dollars of so many tokens; prices are per million tokens."""
        return (usage.prompt * self.limits.price_in + usage.answer * self.limits.price_out) / 1e6

    def pause(self, seconds: float) -> None:
        """Hold all requests back for so long: the endpoint asked one of them to wait."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def acquire(self, estimate: Usage) -> list[float]:
        """Wait until such a request may be made; raises MoneySpentError if it may never be."""
        async with self._turn:  # first come, first served
            while (wait := self._wait(estimate)) > 0 and not self._closed:
                await asyncio.sleep(min(wait, MAX_SLEEP))
            cost, limit = self.cost(estimate), self.limits.max_cost
            if self._closed or (limit and self.spent + self._reserved + cost > limit):
                raise MoneySpentError
            self._reserved += cost
            self._asked.append([time.monotonic(), float(estimate.prompt + estimate.answer)])
            return self._asked[-1]

    def settle(self, entry: list[float], estimate: Usage, usage: Usage | None) -> None:
        """Put what a request really took in place of its estimate; None: it was not answered."""
        self._reserved -= self.cost(estimate)
        if usage is not None:
            entry[1] = float(usage.prompt + usage.answer)
            self.spent += self.cost(usage)

    def _wait(self, estimate: Usage) -> float:
        """Return the seconds until the window may have room; 0 where it has."""
        now = time.monotonic()
        while self._asked and self._asked[0][0] <= now - self.window:
            self._asked.popleft()
        tokens = sum(tokens for _, tokens in self._asked) + estimate.prompt + estimate.answer
        limits = self.limits
        is_full = 0 < limits.rpm <= len(self._asked) or 0 < limits.tpm < tokens
        # A request larger than the whole budget is made when nothing else is in the window.
        free_at = self._asked[0][0] + self.window if self._asked and is_full else now
        return max(free_at, self._paused_until) - now
