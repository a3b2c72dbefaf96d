"""One training at a time: `lock.json` in the run directory names the process that writes there."""

import atexit
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ramify.errors import RamifyError
from ramify.system import process_namespace, process_runs, process_start

NAME = "lock.json"
BEAT = 10.0
"""Seconds between signs of life: the holder sets the file's time anew."""
GONE = 90.0
"""Seconds without one after which a holder on another machine counts as gone; nine beats, so that a file system that
stalls for a minute does not let a second process in."""


class RunLock:
    """Held from `acquire` to `release`; a lock whose holder is gone is taken over.

    On this machine the system says whether the holder still runs (its number and the time it started at); a process
    never shuts itself out. Elsewhere a job that Slurm has requeued is known to be over, and any other is gone once it
    has given no sign of life for `GONE` seconds, measured by the clock of the file system.

    Args:
        run: the run directory.
        wait: wait for a holder that may be gone to count as gone, instead of refusing at once.
    """

    def __init__(self, run: Path, *, wait: bool = False) -> None:
        self.path = run / NAME
        self._wait = wait
        self._own = _identity()
        self._lost = False
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="ramify-lock", daemon=True)

    def acquire(self) -> Self:
        """Takes the lock; a process that ends gives it back.

        Raises:
            RamifyError: another process trains this run.
        """
        deadline = time.monotonic() + GONE + 2 * BEAT
        while not self._try():
            holder = _read(self.path)
            if holder is None:
                continue  # it was released or taken over in between
            if not self._wait or not _elsewhere(holder, self._own) or time.monotonic() > deadline:
                self._refuse(holder)
            time.sleep(0.5)
        self._beats.start()
        atexit.register(self._end)
        return self

    def _end(self) -> None:
        if self._own["pid"] == os.getpid():  # not a copy of the process, which ends earlier
            self.release()

    def release(self) -> None:
        """Gives the lock back; a second time does nothing, nor does a folder that cannot be written any more: whoever
        wants the run sees that this process is gone."""
        self._done.set()
        atexit.unregister(self._end)
        with suppress(OSError):
            if _read(self.path) == self._own:
                self.path.unlink()

    @property
    def lost(self) -> bool:
        """Whether the last look at the lock, a beat ago at most, found it gone; see `check`."""
        return self._lost

    def check(self) -> None:
        """Looks whether this process still holds the lock; before whatever it writes into the run.

        Raises:
            RamifyError: another process has taken the run over, or its folder was moved or removed; so from now on.
        """
        if not self._look():
            raise RamifyError(
                f"{self.path.parent} {self._why_lost()}; this process has stopped and writes nothing more",
                fix=self._where_on(),
            )

    def _look(self) -> bool:
        """Whether the lock is this process's; a file system in trouble will be heard of where something is written."""
        with suppress(OSError):
            self._lost = self._lost or _read(self.path) != self._own
        return not self._lost

    def _why_lost(self) -> str:
        if not self.path.parent.is_dir():
            return "is not there any more, it was moved or removed while it was trained"
        holder = _read(self.path)
        if holder is None:
            return f"was trained by this process, but its {NAME} is gone: it was removed, or the run was moved"
        by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        return f"was taken over while this process gave no sign of life, and is being trained by {by}"

    def _where_on(self) -> str:
        if self.path.parent.is_dir() and _read(self.path) is not None:
            return "leave it to that process; one run is trained by one program at a time"
        return "go on with the run from its latest checkpoint where it is now: ramify train --resume DIR"

    def _try(self) -> bool:
        """Puts the lock there if there is none, or if its holder is gone."""
        mine = self.path.with_name(f".{NAME}.{self._own['token']}")
        mine.write_text(json.dumps(self._own), encoding="utf-8")
        try:
            os.link(mine, self.path)  # atomic, and whole, also over NFS
        except FileExistsError:
            return self._take_over(mine)
        finally:
            mine.unlink()
        return True

    def _take_over(self, mine: Path) -> bool:
        holder = _read(self.path)
        if holder is None or not self._is_gone(holder, mine):
            return False
        aside = mine.with_name(f"{mine.name}.old")
        try:
            os.rename(self.path, aside)  # of several that try this, one succeeds
        except FileNotFoundError:
            return False
        if _read(aside) != holder:  # meanwhile someone else had taken it over: theirs again
            os.rename(aside, self.path)
            return False
        aside.unlink()
        try:
            os.link(mine, self.path)
        except FileExistsError:
            return False
        return True

    def _is_gone(self, holder: dict[str, Any], mine: Path) -> bool:
        if not _elsewhere(holder, self._own):
            return holder.get("pid") == os.getpid() or not process_runs(holder.get("pid"), holder.get("started"))
        if self._own["job"] and holder.get("job") == self._own["job"]:
            return holder.get("restarts", 0) < self._own["restarts"]
        return self._silence(mine) > GONE

    def _silence(self, mine: Path) -> float:
        """Seconds since the holder's last sign of life, by the clock of the file system."""
        try:
            return mine.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _refuse(self, holder: dict[str, Any]) -> None:
        where = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        fix = "wait for it or end it; one run is trained by one program at a time"
        if _elsewhere(holder, self._own):
            fix += f"; if it is surely gone, remove {self.path}, or wait until it has shown no life for {GONE:.0f} s"
        raise RamifyError(f"{self.path.parent} is being trained already: {where}", fix=fix)

    def _beat(self) -> None:
        while not self._done.wait(BEAT) and self._look():
            with suppress(OSError):
                os.utime(self.path)


def _identity() -> dict[str, Any]:
    """This process, such that no other is taken for it."""
    return {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "namespace": process_namespace(),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    }


def _elsewhere(holder: dict[str, Any], own: dict[str, Any]) -> bool:
    return any(holder.get(key) != own[key] for key in ("host", "namespace"))


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None where there is none. A damaged one has no holder that runs."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
