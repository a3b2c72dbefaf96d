"""Queries to the operating system: memory, limits of control groups, start times of processes.

All reads of Linux's /proc and /sys/fs/cgroup are in this module (proc(5), cgroups(7)); other systems use psutil.
"""

import ctypes
import gc
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2.0**60
"""Bytes; a larger limit means no limit: version 1 of control groups reports the largest possible number of pages."""


def available_memory() -> float:
    """Bytes of main memory that this process can still allocate without swapping: the smaller of the free memory of the
    system and the remainder of the limits of its control groups (container or batch job)."""
    return min(float(psutil.virtual_memory().available), group_memory())


def group_memory() -> float:
    """Bytes that the control groups of this process (parents included) still allow; inf without a limit.

    The inactive file cache counts as free, because the kernel reclaims it when memory is needed.
    """
    return min((_left(folder, version) for folder, version in _memory_groups()), default=math.inf)


def _memory_groups() -> Iterator[tuple[Path, int]]:
    """Yields the folders of the control groups that limit this process, with the version of their interface.

    In a container, /proc may give the path of the group on the host, while the container has its own group at the root:
    the root is always included.
    """
    try:
        lines = (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, version = (GROUPS / "memory", 1) if controllers else (GROUPS, 2)
        parts = [] if ".." in path else [part for part in path.split("/") if part]
        for count in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:count]), version


def _left(group: Path, version: int) -> float:
    files = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in files)
        statistics = (group / "memory.stat").read_text(encoding="ascii")
    except OSError:
        return math.inf
    if limit == "max" or float(limit) >= UNLIMITED:
        return math.inf
    key = "total_inactive_file" if version == 1 else "inactive_file"
    cached = re.search(rf"^{key} (\d+)$", statistics, re.MULTILINE)
    return max(0.0, float(limit) - float(used) + (float(cached[1]) if cached else 0.0))


def process_memory() -> int:
    """Bytes of main memory (RSS) of this process, after returning free heap memory to the system."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc only
            libc.malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Peak bytes of main memory (RSS) of this process since `reset_peak_memory`; 0 if the system does not report it."""
    status = PROC / "self/status"
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def reset_peak_memory() -> None:
    """Resets `peak_memory`, where the system supports it."""
    references = PROC / "self/clear_refs"
    if references.exists():
        references.write_text("5", encoding="ascii")


def process_start(pid: int) -> int | None:
    """Start time of a process on this machine; None if it has ended (zombies included).

    On Linux in clock ticks since boot, independent of clock changes; elsewhere in microseconds since 1970. Only for
    comparison with other values of this function.
    """
    if _counts_ticks():
        try:
            text = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        state, *fields = text.rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(1e6 * process.create_time())
    except psutil.Error:
        return None


def process_age() -> float:
    """Seconds since the start of this process, imports included."""
    began = process_start(os.getpid())
    assert began is not None  # it runs
    if _counts_ticks():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    return time.time() - began / 1e6


def _counts_ticks() -> bool:
    return PROC.joinpath("self/stat").exists()


def process_runs(pid: object, began: object) -> bool:
    """Returns whether a process with this id runs on this machine and, unless None, has this start time.

    The start time (see `process_start`) distinguishes processes that reuse an id.
    """
    now = process_start(pid) if isinstance(pid, int) else None
    return now is not None and began in (None, now)


def process_tag() -> str:
    """Identifier of this process for file names: `PID-START`, see `process_start`."""
    return f"{os.getpid()}-{process_start(os.getpid())}"


def parse_tag(tag: str) -> tuple[int, int | None]:
    """Process id and start time of a `process_tag`.

    Earlier versions wrote the id only; the process that now has this id is then assumed to be the writer.
    """
    pid, _, began = tag.partition("-")
    return int(pid), int(began) if began else process_start(int(pid))


def process_namespace() -> str:
    """Identifier of the PID namespace, which distinguishes containers on one machine; empty where there are none."""
    try:
        return os.readlink(PROC / "self/ns/pid")
    except OSError:
        return ""
