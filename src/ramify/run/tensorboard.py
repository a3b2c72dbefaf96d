"""Event files for TensorBoard with the same numbers as metrics.jsonl.

PyTorch's `SummaryWriter` is not used because it writes from a thread, where the error of a full disk would be lost.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

FILE_VERSION = "brain.Event:2"
"""The first record of every event file (tensorflow/core/util/events_writer.cc)."""


class EventFile:
    """One event file in `folder`, which is created if missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._add(Event(wall_time=time.time(), file_version=FILE_VERSION))

    def write(self, summary: Any, step: int) -> None:
        """Writes a `Summary` of TensorBoard."""
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def restart(self, step: int) -> None:
        """Makes steps after `step` in earlier files of the folder invalid."""
        self._add(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def close(self) -> None:
        """Closes the file."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._records.flush()


class TensorBoardLog:
    """The numbers of metrics.jsonl as one event file in `folder`.

    Args:
        folder: created if missing.
        step: later steps in earlier files of the folder become invalid (a resumed run writes them again).
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._file = EventFile(folder)
        if step:
            self._file.restart(step)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes the numbers of one line of metrics.jsonl."""
        values = [Summary.Value(tag=f"{entry['kind']}/{tag}", simple_value=value) for tag, value in _scalars(entry)]
        self._file.write(Summary(value=values), entry["step"])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _scalars(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of nested dictionaries with their paths."""
    found: list[tuple[str, float]] = []
    for key, value in entry.items():
        if isinstance(value, dict):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "time"):
            found.append((prefix + key, float(value)))
    return found
