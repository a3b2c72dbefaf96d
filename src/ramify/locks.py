"""A process by its number and the time it began, so that a later one of that number is not taken for it."""

import os


def started(pid: int) -> int | None:
    """When a process on this machine began, in clock ticks since the machine did (/proc/PID/stat, field 22, see
    proc(5)); None where there is none, where it is dead and only not yet buried, or where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def runs(pid: int, began: int | None) -> bool:
    """Whether the process of this machine that had the number `pid` and `began` then (`started`) still runs."""
    if (now := started(pid)) is not None:
        return now == began
    try:
        os.kill(pid, 0)  # no /proc: does it exist?
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return began is None


def process_tag() -> str:
    """This process as part of a file name: `PID-STARTED`, or `PID` where the system does not tell when it began."""
    began = started(os.getpid())
    return f"{os.getpid()}" if began is None else f"{os.getpid()}-{began}"


def parse_tag(tag: str) -> tuple[int, int | None]:
    """Number and start of the process that `process_tag` stands for. Earlier versions wrote the number alone: whichever
    process has it now then counts as the one that is meant."""
    pid, _, began = tag.partition("-")
    return int(pid), int(began) if began else started(int(pid))
