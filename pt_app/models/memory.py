"""How much memory a process may have on this machine, and what happens when it runs out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pt_app.core.errors import UserError

ROOT = Path("/")
# Parts of messages. oneDNN does not mention memory where it cannot allocate; a failure of malloc is
# a MemoryError.
_MESSAGES = (
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
    "bad allocation",
    "std::bad_alloc",
    "out of memory",
    "_status_alloc_failed",  # cuBLAS, cuDNN, hipBLAS
)
REMEDIES = (
    "shorter sequences (--max_seq_length), a lower --lora_r, --activation_checkpointing full, "
    "or a base in 4 bits (judge_train_cuda.py without --no_4bit)"
)


def memory_limit(root: Path = ROOT) -> tuple[int, str]:
    """Return the bytes that this process may use at most, and which limit that is.

    The least of "physical memory", "cgroup limit" (a container's or a job's, version 1 or 2) and
    "address space limit (ulimit -v)". `root` is where /proc and /sys are looked for.
    """
    bounds = [(physical_memory(root), "physical memory")]
    bounds += [(limit, "cgroup limit") for limit in _cgroup_limits(root)]
    bounds += [(limit, "address space limit (ulimit -v)") for limit in _address_space()]
    return min(bounds, key=lambda bound: bound[0])  # of equals the first: the machine itself


def physical_memory(root: Path = ROOT) -> int:
    """Return the physical memory of the machine in bytes."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS has no /proc


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Return the limits of this process's control group and of all above it, each of which binds.

    A container's view may begin at its own group (its path is then /), or name the host's path,
    of which only the root is there: folders that are missing are passed over. "max" is no limit.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, file = mounted, "memory.max"  # version 2
        elif "memory" in controllers.split(","):
            folder, file = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for part in (own, *own.parents):
            for text in _lines(folder / part / file)[:1]:
                if text.isdigit():
                    yield int(text)


def _address_space() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft


def _lines(file: Path) -> list[str]:
    """Return the lines of a file; none where it is not there or may not be read."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is a failed allocation, on a GPU or on a CPU.

    On a CPU it is a plain RuntimeError of torch's allocator or of oneDNN, or a MemoryError.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return bool(should_reduce_batch_size(error)) or any(text in message for text in _MESSAGES)


def free_memory() -> None:
    """Return the memory of deleted tensors to the system: allocators would keep it."""
    from accelerate.utils.memory import clear_device_cache

    from pt_app.models.gemm import give_back_freed_memory

    clear_device_cache(garbage_collection=True)
    give_back_freed_memory()


@contextmanager
def shortage_explained(what: str, remedies: str = REMEDIES) -> Iterator[None]:
    """Turn an allocation that fails within into a UserError: `what` ran out of memory, remedies."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0][:160]
        raise UserError(f"{what} ran out of memory ({first}); in this order: {remedies}") from error
