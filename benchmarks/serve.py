"""`judge bench serve`: what a server costs beside `Judge.score`, and whether its memory grows.

`judge serve` is a process of its own. The same rows are scored by `Judge.score` in this one, in
turns with the requests. On a busy machine compare CPU time: that of the server against that of this
process while it scores itself.
"""

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.processes import cpu_seconds
from benchmarks.workloads import Lengths, make_workload
from pt_app.core.errors import UserError
from pt_app.core.records import JudgeExample
from pt_app.judge import Judge, Judgement

CLIENTS = (1, 16, 64)
COMPARED = 16  # clients whose throughput is compared with that of `Judge.score`
BLOCK = 250  # rows that each way gets in its turn
ALONE = 100  # requests that are asked one by one
STATE_TOKENS = 200
QUESTIONS = {
    "noul": {"type": "noul", "instructions": "The text is polite."},
    "choice": {"type": "choice", "instructions": "Who writes?", "criteria": {"a": None, "b": None}},
    "score": {"type": "score", "instructions": "How clear is it?", "criteria": ["0", "1", "2"]},
}
Row = Mapping[str, Any]


class Served:
    """A server in a process of its own, and clients that keep their connections."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.process, self.port = psutil.Process(process.pid), port
        self._own = threading.local()

    def post(self, path: str, body: Row) -> Any:
        """Return the JSON of an answer; raises UserError for another status than 200."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Content-Type": "application/json"}
        self._own.connection.request("POST", path, json.dumps(body).encode(), headers)
        response = self._own.connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise UserError(f"{path} answers {response.status}: {content[:300]!r}")
        return json.loads(content)

    def judged(self, row: Row) -> Any:
        """Return the judgement of one row."""
        return self.post("/v1/judgements", {"rows": [row]})["judgements"][0]

    def asked(self, rows: Sequence[Row], clients: int) -> list[Any]:
        """Return the judgements of rows, asked for one by one by so many clients at once."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.judged, rows))


@contextmanager
def served(adapter: Path, base: str | None) -> Iterator[Served]:
    """Serve a judge by the command line, on a free port."""
    words = ["serve", str(adapter), "--port=0", *([f"--base={base}"] if base else [])]
    command = [sys.executable, "-m", "pt_app.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            # A line about the base may come first, as of one that was quantised.
            ports = (line.partition("http://127.0.0.1:")[2].split() for line in process.stdout)
            port = next(filter(None, ports), None)
            if port is None:
                raise UserError("judge serve did not start: see what it says above")
            yield Served(process, int(port[0]))
        finally:
            process.terminate()


def measure(
    adapter: Path,
    base: str | None,
    rows: int,
    requests: int,
    body_tokens: int,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return throughput, overhead, latency, agreement and memory of a served judge.

    Args:
        adapter: folder of the judge.
        base: its base, if it was a folder or file.
        rows: how many are asked for by each number of clients.
        requests: how many are sent while the memory is watched.
        body_tokens: median length of a row's texts together, in tokens of the tiny base.
        say: is told of progress.

    Raises:
        UserError: for a judge that cannot be loaded or served, or has other rows than single
            candidates, and for rows that it refuses.
    """
    judge = Judge.load(adapter, base=base)
    if judge.info.questions or judge.info.scale.task == "pairwise":
        kind = "questions" if judge.info.questions else "pairs"
        raise UserError(
            f"{adapter} judges {kind}, and the rows are single candidates: name another"
        )
    # Each row has a source of its own: clients do not ask in the order in which rows share most.
    examples = make_workload("rubric", rows, "0-10", Lengths(body=body_tokens)).examples
    given = [_row(one, judge.info.row_fields) for one in examples]
    with served(adapter, base) as server:
        report: dict[str, Any] = {"judge": judge.name, "rows": rows}
        report |= _throughput(judge, server, given, say)
        report |= _alone(judge, server, given[:ALONE])
        say("asked one by one")
        report |= _three_questions(judge, server, examples[0].source or "")
        return report | _memory(server, given, requests, say)


def _row(example: JudgeExample, fields: Sequence[str]) -> Row:
    return {name: value for name in fields if (value := getattr(example, name))}


def _throughput(
    judge: Judge, server: Served, rows: Sequence[Row], say: Callable[[str], None]
) -> dict[str, Any]:
    """Score all rows here and by each number of clients, block by block, and compare."""
    spent: dict[int, list[float]] = {clients: [0.0, 0.0] for clients in (0, *CLIENTS)}
    apart = dict.fromkeys(CLIENTS, 0.0)
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        own = _timed(spent[0], None, partial(judge.score, block, shorten=False))
        for clients in CLIENTS:
            order = random.Random(first + clients).sample(range(len(block)), len(block))
            mixed = [block[i] for i in order]
            ask = partial(server.asked, mixed, clients)
            answers = _timed(spent[clients], server.process, ask)
            pairs = zip((own[i] for i in order), answers, strict=True)
            apart[clients] = max(apart[clients], *(_apart(one, other) for one, other in pairs))
        say(f"{min(first + BLOCK, len(rows))} of {len(rows)} rows")
    report: dict[str, Any] = {"judge_score_rows_per_second": len(rows) / spent[0][0]}
    for clients in CLIENTS:
        report[f"clients_{clients}_rows_per_second"] = len(rows) / spent[clients][0]
        report[f"clients_{clients}_probability_difference"] = apart[clients]
    for clock, name in enumerate(("throughput_ratio", "throughput_ratio_in_cpu_time")):
        report[name] = spent[0][clock] / spent[COMPARED][clock]
    return report


def _timed(spent: list[float], process: Any, work: Callable[[], Any]) -> Any:
    """Do some work, and add its seconds and the CPU seconds of a process, by default this one."""
    start, cpu = time.perf_counter(), cpu_seconds(process)
    result = work()
    spent[1] += cpu_seconds(process) - cpu
    spent[0] += time.perf_counter() - start
    return result


def _apart(own: Judgement, served: Row) -> float:
    if own.probabilities is None:
        remedy = "lower --body_tokens, or name another judge of single candidates"
        raise UserError(f"a row of the benchmark has no verdict ({own.status}): {remedy}")
    chances = served["probabilities"]
    return max(abs(chance - float(chances[value])) for value, chance in own.probabilities.items())


def _alone(judge: Judge, server: Served, rows: Sequence[Row]) -> dict[str, Any]:
    """Ask for rows one by one, in turns with `Judge.score`: what does a request cost beside it?"""
    own, asked = [0.0, 0.0], [0.0, 0.0]
    times: list[tuple[float, float]] = []
    judge.score(rows[:1], shorten=False)
    server.judged(rows[0])
    for row in rows:
        before = own[0], asked[0]
        _timed(own, None, partial(judge.score, [row], shorten=False))
        _timed(asked, server.process, partial(server.judged, row))
        times.append((own[0] - before[0], asked[0] - before[1]))
    score, request = (1000 * median(each) for each in zip(*times, strict=True))
    return {
        "judge_score_one_row_ms": score,
        "request_ms": request,
        "overhead_ms": request - score,
        "overhead_ms_of_cpu_time": 1000 * (asked[1] - own[1]) / len(rows),
    }


def _three_questions(judge: Judge, server: Served, words: str) -> dict[str, Any]:
    """Ask three questions about a state of 200 tokens, again and again, in one request each."""
    tokenizer = judge.encoder.tokenizer
    ids = tokenizer.encode(" ".join([words] * 50), add_special_tokens=False)[:STATE_TOKENS]
    body = {"state": tokenizer.decode(ids), "questions": QUESTIONS}
    spent, times = [0.0, 0.0], []
    for _ in range(ALONE // 2):
        before = spent[0]
        _timed(spent, server.process, partial(server.post, "/v1/systemone", body))
        times.append(1000 * (spent[0] - before))
    return {
        "three_questions_p50_ms": median(times),
        "three_questions_ms_of_cpu_time": 1000 * spent[1] / len(times),
    }


def _memory(
    server: Served, rows: Sequence[Row], requests: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Send requests by 16 clients, and read the server's memory after each tenth of them."""
    endless, sizes = cycle(rows), []
    for tenth in range(10):
        count = requests * (tenth + 1) // 10 - requests * tenth // 10
        server.asked(list(islice(endless, count)), COMPARED)
        sizes.append(server.process.memory_info().rss / 2**20)
        say(f"{requests * (tenth + 1) // 10} requests: {sizes[-1]:.1f} MiB")
    return {
        "requests": requests,
        "memory_mib": sizes,
        "memory_growth_after_the_first_tenth_mib": sizes[-1] - sizes[0],
    }
