"""What the operating system says of this machine and of processes on it: memory, limits of control groups, start times.

Everything that is read from Linux's /proc and /sys/fs/cgroup is read here (proc(5), cgroups(7)); where there is none,
psutil asks the system.
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
"""Bytes from which on a limit is none: version 1 of control groups states the largest number of pages there is."""


def available_memory() -> float:
    """Bytes of main memory that this process may still take without swapping: what the system has left, or what the
    control groups of its container or batch job leave, whichever is less."""
    return min(float(psutil.virtual_memory().available), group_memory())


def group_memory() -> float:
    """Bytes that the control groups of this process leave it, each group above its own included; inf without a limit.

    Memory of files that were read a while ago counts as free: the kernel gives it to whoever needs it.
    """
    return min((_left(folder, version) for folder, version in _memory_groups()), default=math.inf)


def _memory_groups() -> Iterator[tuple[Path, int]]:
    """Folders of the control groups that limit this process, and the version of their files.

    In a container /proc may name the group as the host does, while the container sees its own group at the root: the
    root is looked at in any case.
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
    """Bytes of main memory that this process holds now, after free memory was given back to the system."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc only
            libc.malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """The most bytes of main memory that this process has held since `reset_peak_memory`; 0 where that is not known."""
    status = PROC / "self/status"
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def reset_peak_memory() -> None:
    """`peak_memory` counts from now on, where the system can do that."""
    references = PROC / "self/clear_refs"
    if references.exists():
        references.write_text("5", encoding="ascii")


def process_start(pid: int) -> int | None:
    """When a process on this machine began; None where it has ended, even if its parent does not know yet.

    On Linux in clock ticks since the machine started, which no change of the clock moves; elsewhere in microseconds
    since 1970. For comparing with itself only.
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
    """Seconds since this process started, imports included."""
    began = process_start(os.getpid())
    assert began is not None  # it runs
    if _counts_ticks():
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    return time.time() - began / 1e6


def _counts_ticks() -> bool:
    return PROC.joinpath("self/stat").exists()


def process_runs(pid: object, began: object) -> bool:
    """Whether a process runs on this machine under this number and, unless that is None, began then (`process_start`).

    Two processes may have the same number, one after the other.
    """
    now = process_start(pid) if isinstance(pid, int) else None
    return now is not None and began in (None, now)


def process_tag() -> str:
    """This process as part of a file name: `PID-START`, see `process_start`."""
    return f"{os.getpid()}-{process_start(os.getpid())}"


def parse_tag(tag: str) -> tuple[int, int | None]:
    """Number and start of the process that `process_tag` stands for.

    Earlier versions wrote the number alone; the process that has this number now is then taken for the writer.
    """
    pid, _, began = tag.partition("-")
    return int(pid), int(began) if began else process_start(int(pid))


def process_namespace() -> str:
    """What tells processes of different containers on one machine apart, whose numbers may be the same; empty where
    the system has no such thing."""
    try:
        return os.readlink(PROC / "self/ns/pid")
    except OSError:
        return ""
