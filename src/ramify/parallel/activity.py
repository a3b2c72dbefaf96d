"""Whether a thread of this process does anything: seen from the processor time it uses, not from what it says."""

import os
import threading
import time
from pathlib import Path

USED = 0.01
"""Share of the time on a processor from which a thread counts as working. One that waits for a message, sleeps or looks
at a lock now and then stays far below; one that computes on a machine with a hundred others for each core is above."""


class ThreadActivity:
    """The activity of the thread that makes it, and of the programs that this process has started (a compiler, say).

    Linux says what a thread and a program do; elsewhere the processor time of the whole process counts.
    """

    def __init__(self) -> None:
        self._task = Path(f"/proc/self/task/{threading.get_native_id()}")
        self._clock = time.pthread_getcpuclockid(threading.get_ident()) if hasattr(time, "pthread_getcpuclockid") else 0
        self._looked, self._used = time.monotonic(), self._seconds()
        self._children: dict[int, int] = {}

    def seen(self) -> bool:
        """Whether there was any since the last look: it runs or wants to, waits for a disk, or has used `USED` of a
        processor; or a program that this process has started has."""
        now, used = time.monotonic(), self._seconds()
        passed, spent = now - self._looked, used - self._used
        self._looked, self._used = now, used
        return spent > USED * passed or _state(self._task) in ("R", "D") or self._children_seen(passed)

    def _seconds(self) -> float:
        return time.clock_gettime(self._clock) if self._clock else time.process_time()

    def _children_seen(self, passed: float) -> bool:
        before, self._children = self._children, _children_ticks(os.getpid())
        least = USED * passed * os.sysconf("SC_CLK_TCK")
        return any(ticks - before.get(pid, 0) > least for pid, ticks in self._children.items())


def _state(task: Path) -> str:
    """R: runs or waits for a processor; D: waits for a disk; S: waits for something else (proc(5)); empty: unknown."""
    return _fields(task)[0] if (task / "stat").exists() else ""


def _children_ticks(pid: int) -> dict[int, int]:
    """Clock ticks that each program below `pid` has used."""
    found: dict[int, int] = {}
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listed.read_text(encoding="ascii").split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            fields = _fields(Path(f"/proc/{child}"))
            if len(fields) > 12:
                found[child] = int(fields[11]) + int(fields[12])
                found |= _children_ticks(child)
    return found


def _fields(folder: Path) -> list[str]:
    """What `stat` says behind the name of the program: field 3 (state) is the first, 14 and 15 are ticks (proc(5))."""
    try:
        return (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split() or [""]
    except OSError:
        return [""]
