"""Parts of a long work, done by the processes of a Ray cluster.

Ray Data hands a part to each worker that is free, and starts a worker that died again, which gets
its part again; what has come back is never done again.
"""

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.models.platforms import cores

if TYPE_CHECKING:
    from pandas import DataFrame

# Of a CPU, for a worker, which computes on one thread. Workers that hold every CPU leave none for
# Ray's own tasks, which then wait without a word.
SHARE = 0.5
# Seconds without any part that came back, after which the work ends: a worker that is killed while
# it loads is started again without end. Ray's default is shorter than a slow part may take.
PATIENCE = 2 * 3600
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # reports to Ray's makers
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else an error for each constructor that has arguments
    "RAY_worker_niceness": "0",  # by default 15: beside another program hardly any progress
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # to connect, of 40 s each; by default 20
}
REACHABLE = 10  # seconds; Ray itself waits a minute or more
Work = Callable[[Sequence[Any]], str]
"""Turns the items of a part into a text."""
Parts = Iterable[tuple[int, Sequence[Any]]]
log = logging.getLogger(__name__)


def in_workers(
    start: Callable[[], Work], parts: Parts, address: str, workers: int | None, gpus: bool
) -> Iterator[tuple[int, str]]:
    """Do the work on every part, and yield its number and the text, in the order of completion.

    Args:
        start: makes the work in each worker, such as by loading a model. It is pickled, as the
            items of parts are, which Ray's object store holds; that spills to disk.
        parts: by number.
        address: of the cluster: HOST:PORT; auto: the one that this machine belongs to, or else one
            that is started on its cores, and ends with the work.
        workers: the number of workers; None: one for each CPU, or GPU, of the cluster.
        gpus: whether each has a GPU.

    Raises:
        UserError: without Ray, for a cluster that is not reached or is too small, for what a worker
            says the user can fix, and where workers keep dying.
    """
    import pandas

    with _cluster(address) as ray:
        size = _available(ray, workers, "GPU" if gpus else "CPU")
        refs, sizes = [], {}
        for number, items in parts:
            refs.append(ray.put(pandas.DataFrame({"part": [number], "items": [list(items)]})))
            sizes[number] = len(items)
        if not refs:  # all is done
            return
        size = min(size, len(refs))
        dataset = _mapped(ray, refs, start, size, gpus)
        with tqdm(total=sum(sizes.values()), desc=f"{size} workers: rows") as bar:
            spans = []
            for done in _iterated(ray, dataset):
                if done["problem"]:
                    raise UserError(done["problem"])
                yield done["part"], done["text"]
                spans.append((done["began"], done["ended"]))
                bar.update(sizes[done["part"]])
        seconds = max(end for _, end in spans) - min(began for began, _ in spans)
        message = "%d rows in %.1f s after the start of %d workers: %.1f rows/s"
        log.info(message, bar.total, seconds, size, bar.total / max(seconds, 1e-9))


def _mapped(ray: Any, refs: list[Any], start: Callable[[], Work], size: int, gpus: bool) -> Any:
    """Return the dataset of what workers make of parts: nothing is done before it is read."""
    return ray.data.from_pandas_refs(refs).map_batches(
        _Worker,
        fn_constructor_args=(start,),
        batch_size=None,  # a part is a block
        batch_format="pandas",
        # One in work and one that waits: Ray takes some 0.15 s to hand out the next one. More would
        # be kept from workers that are free.
        compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=2),
        num_cpus=SHARE,
        num_gpus=1 if gpus else None,
    )


class _Worker:
    """The work in a process of its own, on one thread."""

    def __init__(self, start: Callable[[], Work]) -> None:
        import torch

        console.start()
        torch.set_num_threads(1)
        self.start = start
        self.work: Work | None = None

    def __call__(self, part: "DataFrame") -> "DataFrame":
        """Do the work on one part; a problem goes back as text, since Ray would add a traceback."""
        began, text, problem = time.time(), "", ""
        try:
            if self.work is None:
                self.work = self.start()
                began = time.time()
            text = self.work(part["items"][0])
        except UserError as error:
            problem = f"worker on {platform.node()}: {error}"
        return part[["part"]].assign(text=text, problem=problem, began=began, ended=time.time())


def _iterated(ray: Any, dataset: Any) -> Iterator[dict[str, Any]]:
    lost = ray.exceptions.ActorDiedError, ray.data.exceptions.ExecutionTimeoutError
    try:
        yield from dataset.iter_rows()
    except lost as error:
        message = f"Ray lost its workers: {_first_line(error)}"
        raise UserError(f"{message}: is their memory enough, and pt_app installed?") from error


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one; it is left, or ended, afterwards."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data.exceptions
    except ImportError as error:
        raise UserError(f"--ray: {error}: pip install -r requirements-ray.txt") from error
    if address != "auto":
        _reach(address)
    quiet = {"logging_level": logging.ERROR}
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        if address != "auto":
            raise UserError(_no_cluster(address, error)) from error
        ray.init(address="local", num_cpus=cores(), include_dashboard=False, **quiet)
        log.info("Ray: a cluster of its own on this machine, of %d CPUs", cores())
    except (RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(_no_cluster(address, error)) from error
    else:
        log.info("Ray: the cluster at %s", ray.get_runtime_context().gcs_address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = PATIENCE
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in host:
        raise UserError(f"--ray {address}: write HOST:PORT, as `ray start --head` says it, or auto")
    try:
        socket.create_connection((host, int(port)), REACHABLE).close()
    except (OSError, OverflowError) as error:
        raise UserError(_no_cluster(address, error)) from error


def _no_cluster(address: str, error: BaseException) -> str:
    remedy = "start one (ray start --head), correct its address, or say --ray auto"
    return f"--ray {address}: no Ray cluster is reached there ({_first_line(error)}): {remedy}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")


def _available(ray: Any, workers: int | None, resource: str) -> int:
    """Return the number of workers; raises UserError if the cluster has not as many CPUs or GPUs.

    Ray would wait without a word for machines that join.
    """
    there = int(ray.cluster_resources().get(resource, 0))
    if there < (wanted := workers or 1):
        remedy = "name as many at most, or add machines to it"
        raise UserError(f"--workers {wanted}: the Ray cluster has {there} {resource}s: {remedy}")
    return workers or there
