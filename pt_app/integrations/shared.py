"""One judge for all scorers of a process: evaluators ask it for one row at a time, many at once.

serving/batching.py does so for requests, on an event loop and with what servers need beside.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from pt_app.core.errors import UserError
from pt_app.core.records import Place
from pt_app.judge import Judge, Judgement, Row

MAX_ROWS = 64  # scored together
SAMPLE = Place(Path("sample"), 1, lines=False)
SOURCES = {"source", "conversation"}  # a row has one of the two
_lock = Lock()


class SharedJudge:
    """A judge that may be asked by several threads at once.

    What arrives while a batch is scored is the next batch, in one prefix tree. One thread scores,
    since neither a tokenizer nor a model may be used by two.
    """

    def __init__(self, load: Callable[[], Judge]) -> None:
        # That thread loads it, too: two that compute slow each other down (serving/batching.py).
        self._thread = ThreadPoolExecutor(1, "judge")
        self.judge = judge = self._thread.submit(load).result()
        self.scale, shown = judge.info.scale, judge.info.row_fields
        if "candidate" not in shown:
            problem = f"is shown {', '.join(shown)}, and an evaluator has one candidate"
            raise UserError(f"{judge.info.folder} {problem}: use Judge.score")
        self.fields = {*shown, "rubric", "id"} - {"candidate"}
        self._waiting: SimpleQueue[tuple[Row, Future[Judgement]]] = SimpleQueue()

    def judged(
        self, candidate: object, given: Mapping[str, object], defaults: Mapping[str, object]
    ) -> Judgement:
        """Judge a candidate beside the fields of `given` that the judge is shown.

        Args:
            candidate: the text to judge.
            given: fields by name; those that the judge does not know are ignored.
            defaults: what counts where `given` has none; a source or a conversation in `given`
                replaces both.

        Raises:
            UserError: for a row without a needed field, and one with a field of another type.
        """
        replaced = SOURCES if SOURCES & given.keys() else set()
        merged = {k: v for k, v in defaults.items() if k not in replaced} | dict(given)
        row = {name: merged[name] for name in self.fields if merged.get(name) is not None}
        done: Future[Judgement] = Future()
        self._waiting.put((row | {"candidate": candidate}, done))
        self._thread.submit(self._score)
        judgement = done.result()
        if judgement.status == "bad_row":
            name = f"sample {row.get('id', '')}".rstrip()
            raise UserError(str(judgement.problem).replace(str(SAMPLE), name, 1))
        return judgement

    def value(self, judgement: Judgement) -> float | bool | None:
        """Return the verdict: a score, or whether it passes; None where the judge gave none."""
        if judgement.status != "ok" or judgement.verdict is None:
            return None
        if self.scale.task == "pass_fail":
            return judgement.verdict == "PASS"
        return float(judgement.verdict)

    def _score(self) -> None:
        """Score what waits; the calls for rows that an earlier one took find nothing."""
        works: list[tuple[Row, Future[Judgement]]] = []
        while not self._waiting.empty() and len(works) < MAX_ROWS:
            works.append(self._waiting.get())
        try:
            rows = [row for row, _ in works]
            judged = self.judge.score(rows, places=[SAMPLE] * len(rows)) if rows else []
        except Exception as error:
            for _, done in works:
                done.set_exception(error)
            return
        for (_, done), judgement in zip(works, judged, strict=True):
            done.set_result(judgement)


def shared(adapter: str | Path, base: str | None = None) -> SharedJudge:
    """Return the judge of a folder, loaded once in a process.

    Args:
        adapter: the folder of the adapter.
        base: the folder of the base, if it was one.

    Raises:
        UserError: as Judge.load does, for a judge of several questions, and for one that is not
            shown one candidate, such as a judge of pairs.
    """
    with _lock:  # evaluators may make scorers in several threads
        return _loaded(str(adapter), base)


@cache
def _loaded(adapter: str, base: str | None) -> SharedJudge:
    return SharedJudge(partial(Judge.load, adapter, base=base))


def missing(package: str, error: ImportError) -> UserError:
    """Return the error for a package that is not installed."""
    return UserError(f"{package} cannot be imported ({error}): pip install {package}")
