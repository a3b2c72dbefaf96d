"""One training at a time: `lock.json` in the run directory names the process that writes there."""

import json
import os
import secrets
import socket
import threading
import time
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
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="ramify-lock", daemon=True)

    def acquire(self) -> Self:
        """Takes the lock.

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
        return self

    def release(self) -> None:
        """Gives the lock back; a second time does nothing."""
        self._done.set()
        if _read(self.path) == self._own:
            self.path.unlink()

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
        while not self._done.wait(BEAT) and _read(self.path) == self._own:
            try:
                os.utime(self.path)
            except OSError:  # a file system in trouble will be heard of where something is written
                continue


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
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
