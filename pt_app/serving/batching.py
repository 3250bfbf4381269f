"""One worker for all requests: what arrives together is scored in one prefix tree.

integrations/shared.py does so for threads, in fewer lines: nobody there disconnects, waits behind
a limit, or asks several judges.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from starlette.requests import Request

from pt_app.core.errors import UserError
from pt_app.core.http_server import RefusedError
from pt_app.core.records import JudgeExample
from pt_app.judge import Judge, Judgement
from pt_app.serving.questions import ServedRow, fits, judgements_of

MAX_ROWS = 64  # scored together; more would let others wait
MAX_WAITING = 2048  # rows; beyond that a request is told to come back
GATHER = 0.005  # seconds that a batch waits for as many requests as the last one had

log = logging.getLogger(__name__)


@dataclass
class Work:
    """Rows of one request that are scored together."""

    request: Request
    rows: Sequence[ServedRow]
    done: asyncio.Future[list[Judgement]]


class Worker:
    """Scores the rows of all requests, batch after batch, in a thread of its own.

    Tokenizers and models are used by that thread alone.

    Attributes:
        waiting: rows that wait or are being scored.
        batches, rows: how many have been scored.
    """

    def __init__(self) -> None:
        self.waiting = self.batches = self.rows = 0
        self._queue: asyncio.Queue[Work] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "judge")
        self._company = 1

    def load(self, make: Callable[[], Judge]) -> Judge:
        """Load a judge in the thread that will score with it.

        Each thread that computes has a team of OpenMP threads of its own. With that of a loading
        thread beside it libgomp counts more threads than cores, and stops spinning: on two cores
        scoring then took 1.7 times as long (models/contention.py).
        """
        return self._thread.submit(make).result()

    async def judged(self, request: Request, rows: Sequence[ServedRow]) -> list[Judgement]:
        """Return the judgement of each row.

        Raises:
            RefusedError: if too many rows wait already.
        """
        with self._counted(len(rows)):
            parts = [rows[start : start + MAX_ROWS] for start in range(0, len(rows), MAX_ROWS)]
            loop = asyncio.get_running_loop()
            works = [Work(request, part, loop.create_future()) for part in parts]
            for work in works:
                self._queue.put_nowait(work)
            try:
                judged = await asyncio.gather(*(work.done for work in works))
            finally:
                for work in works:  # where one part fails nobody waits for the others
                    work.done.cancel()
            return [one for part in judged for one in part]

    async def fits(self, row: ServedRow) -> bool:
        """Return whether a row is not too long to be judged; refuses it as `judged` does."""
        with self._counted(1):
            return await asyncio.get_running_loop().run_in_executor(self._thread, fits, row)

    @contextmanager
    def _counted(self, rows: int) -> Iterator[None]:
        """Count rows as waiting, within; raises RefusedError if too many do already."""
        if self.waiting and self.waiting + rows > MAX_WAITING:
            raise RefusedError(f"{self.waiting} rows wait already: try again later", 429)
        self.waiting += rows
        try:
            yield
        finally:
            self.waiting -= rows

    async def run(self) -> None:
        """Score batch after batch until it is cancelled."""
        while True:
            await self._answered(await self._batch())

    async def _answered(self, works: Sequence[Work]) -> None:
        """Score works; where that fails, each alone: no request may fail those beside it."""
        try:
            await self._score(works)
        except Exception as error:
            if len(works) > 1:
                for work in works:
                    await self._answered([work])
                return
            refused = RefusedError(str(error), 422)
            if not isinstance(error, UserError):
                log.exception("a request could not be judged")
                refused = RefusedError(type(error).__name__, 500)
            if not works[0].done.done():
                works[0].done.set_exception(refused)

    async def _batch(self) -> list[Work]:
        """Return the works of the next batch, at least one.

        Clients that ask again after each answer come back together: after a batch of several
        requests it waits a moment for as many. A lone request waits for nobody.
        """
        works = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(GATHER):
                while len(works) < self._company and _has_room(works):
                    works.append(await self._queue.get())
        while not self._queue.empty() and _has_room(works):
            works.append(self._queue.get_nowait())
        self._company = len(works)
        return works

    async def _score(self, works: Sequence[Work]) -> None:
        """Score the rows of works whose clients are still there."""
        kept = []
        for work in works:
            disconnected = await work.request.is_disconnected()
            if work.done.done():  # by the batch that failed before, or cancelled
                continue
            if disconnected:
                work.done.set_exception(RefusedError("the client disconnected", 499))
            else:
                kept.append(work)
        if not (rows := [row for work in kept for row in work.rows]):
            return
        self.batches, self.rows = self.batches + 1, self.rows + len(rows)
        loop = asyncio.get_running_loop()
        judged = deque(await loop.run_in_executor(self._thread, self._judged, rows))
        for work in kept:
            own = [judged.popleft() for _ in work.rows]
            if not work.done.done():
                work.done.set_result(own)

    def _judged(self, rows: Sequence[ServedRow]) -> list[Judgement]:
        """Score rows, those of one judge and kind together."""
        judgements: dict[int, Judgement] = {}
        groups: dict[tuple[Judge, bool], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault((row.judge, isinstance(row.row, JudgeExample)), []).append(place)
        for places in groups.values():
            own = judgements_of([rows[place] for place in places])
            judgements.update(zip(places, own, strict=True))
        return [judgements[place] for place in range(len(rows))]


def _has_room(works: Sequence[Work]) -> bool:
    return sum(len(work.rows) for work in works) < MAX_ROWS
