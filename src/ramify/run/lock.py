"""The lock of a run: `lock.json` in the run directory names the only process that may write there."""

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
"""Seconds between heartbeats: the holder updates the modification time of the file."""
GONE = 90.0
"""Seconds without a heartbeat after which a holder on another machine counts as dead; nine heartbeats, so that a file
system that stalls for a minute does not admit a second process."""


class RunLock:
    """Held from `acquire` to `release`; the lock of a dead holder is taken over.

    On this machine, process number and start time show whether the holder still runs; a process never locks itself out.
    On other machines, a job that Slurm has requeued is known to have ended, and any other holder counts as dead after
    `GONE` seconds without a heartbeat, measured by the clock of the file system.

    Args:
        run: the run directory.
        wait: wait until a holder that may be dead counts as dead, instead of failing immediately.
    """

    def __init__(self, run: Path, *, wait: bool = False) -> None:
        self.path = run / NAME
        self._wait = wait
        self._own = _identity()
        self._lost = False
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="ramify-lock", daemon=True)

    def acquire(self) -> Self:
        """Acquires the lock, which is released when the process exits.

        Raises:
            RamifyError: another process trains this run.
        """
        deadline = time.monotonic() + GONE + 2 * BEAT
        while not self._try():
            holder = _read(self.path)
            if holder is None:
                continue  # it was released or taken over in between
            if not self._wait or not _elsewhere(holder, self._own) or time.monotonic() > deadline:
                self._raise_locked(holder)
            time.sleep(0.5)
        self._beats.start()
        atexit.register(self._end)
        return self

    def _end(self) -> None:
        if self._own["pid"] == os.getpid():  # not in a fork, which exits earlier
            self.release()

    def release(self) -> None:
        """Releases the lock. Does nothing the second time, or where the folder can no longer be written: other
        processes then detect that this one has ended."""
        self._done.set()
        atexit.unregister(self._end)
        with suppress(OSError):
            if _read(self.path) == self._own:
                self.path.unlink()

    @property
    def lost(self) -> bool:
        """Whether the last check, at most a heartbeat ago, found the lock lost; see `check`."""
        return self._lost

    def check(self) -> None:
        """Checks that this process still holds the lock; call it before writing into the run.

        Raises:
            RamifyError: another process has taken over the run, or its folder was moved or removed; all later calls
                raise it too.
        """
        if not self._is_held():
            raise RamifyError(
                f"{self.path.parent} {self._reason_lost()}; this process has stopped and writes nothing more",
                fix=self._fix_lost(),
            )

    def _is_held(self) -> bool:
        """Whether this process holds the lock. Ignores errors of the file system: the next write will raise them."""
        with suppress(OSError):
            self._lost = self._lost or _read(self.path) != self._own
        return not self._lost

    def _reason_lost(self) -> str:
        if not self.path.parent.is_dir():
            return "no longer exists; it was moved or removed during training"
        holder = _read(self.path)
        if holder is None:
            return f"was trained by this process, but its {NAME} is gone: it was removed, or the run was moved"
        by = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        return f"was taken over while this process sent no heartbeat, and is being trained by {by}"

    def _fix_lost(self) -> str:
        if self.path.parent.is_dir() and _read(self.path) is not None:
            return "let that process continue; only one program at a time may train a run"
        return "resume the run from its latest checkpoint at its new location: ramify train --resume DIR"

    def _try(self) -> bool:
        """Creates the lock if there is none or if its holder is dead."""
        mine = self.path.with_name(f".{NAME}.{self._own['token']}")
        mine.write_text(json.dumps(self._own), encoding="utf-8")
        try:
            os.link(mine, self.path)  # atomic with complete content, also over NFS
        except FileExistsError:
            return self._take_over(mine)
        finally:
            mine.unlink()
        return True

    def _take_over(self, mine: Path) -> bool:
        holder = _read(self.path)
        if holder is None or not self._is_gone(holder, mine):
            return False
        old = mine.with_name(f"{mine.name}.old")
        try:
            os.rename(self.path, old)  # of several processes, one succeeds
        except FileNotFoundError:
            return False
        if _read(old) != holder:  # another process had taken it over meanwhile: restore its lock
            os.rename(old, self.path)
            return False
        old.unlink()
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
        """Seconds since the last heartbeat of the holder, by the clock of the file system."""
        try:
            return mine.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _raise_locked(self, holder: dict[str, Any]) -> None:
        where = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"
        fix = "wait for it or end it; only one program at a time may train a run"
        if _elsewhere(holder, self._own):
            fix += f"; if it has certainly ended, remove {self.path}, or wait until {GONE:.0f} s without a heartbeat"
        raise RamifyError(f"{self.path.parent} is being trained already: {where}", fix=fix)

    def _beat(self) -> None:
        while not self._done.wait(BEAT) and self._is_held():
            with suppress(OSError):
                os.utime(self.path)


def is_locked(run: Path) -> bool:
    """Whether another process that may still run holds the lock of a run: on this machine by its process number and
    start time, elsewhere by its last heartbeat."""
    holder, own = _read(run / NAME), _identity()
    if not holder:
        return False
    if not _elsewhere(holder, own):
        return holder.get("pid") != own["pid"] and process_runs(holder.get("pid"), holder.get("started"))
    probe = run / f".{NAME}.{own['token']}"
    with suppress(FileNotFoundError):  # the lock was released meanwhile
        probe.touch()
        try:
            return probe.stat().st_mtime - (run / NAME).stat().st_mtime <= GONE
        finally:
            probe.unlink()
    return False


def _identity() -> dict[str, Any]:
    """A unique identification of this process."""
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
    """The holder of a lock; None where there is no lock. A damaged lock has no running holder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
