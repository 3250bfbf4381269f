"""How much memory a process may have on this machine, and what bounds it."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


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
