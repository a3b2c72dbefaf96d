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
from torch.utils.tensorboard.summary import text

from ramify.recipe import Recipe
from ramify.run.trackers.tracker import Ending, curves

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
    """One event file of a session in `RUN/tensorboard`; see `ramify.run.trackers.tracker`.

    Steps after the first one of the session become invalid in earlier files: a resumed run writes them again.
    """

    id = None

    def __init__(self, folder: Path, recipe: Recipe, known: str | None, step: int | None) -> None:
        self._file = EventFile(folder / "tensorboard")
        if step:
            self._file.restart(step)
        if step is not None:
            self._file.write(text("recipe", f"```yaml\n{recipe.to_yaml()}\n```"), step)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes the numbers of one line of metrics.jsonl."""
        self._write(curves(entry), entry["step"])

    def tables(self, split: str, step: int, errors: Mapping[str, float], markdown: str) -> None:
        """Writes the errors as points of one step, and the tables as text."""
        self._write({f"{split}/{name}": value for name, value in errors.items()}, step)
        self._file.write(text(f"{split}/tables", markdown), step)

    def close(self, ended: Ending) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, numbers: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._file.write(Summary(value=values), step)


open_tracker = TensorBoardLog
