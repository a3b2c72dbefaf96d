"""Records that were left out, and remarks on records that were kept: counts in memory, one JSON line each in a file."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Note:
    """One line: `count` records that were left out, or kept with a remark."""

    record: str
    reason: str
    detail: str
    count: int
    kept: bool = False


class Quarantine:
    """Collects the records that a source or a quality gate leaves out. Use as a context manager.

    Each record becomes one line `{"record": ..., "reason": ..., "detail": ...}`. The reason is a short fixed phrase, by
    which records are counted; the detail contains the numbers.

    Args:
        path: the JSON-lines file to write; None counts only.

    Attributes:
        counts: number of records left out, by reason.
        remarks: number of records kept with a remark (a label left out, a doubtful value), by reason.
        first: the first record of each reason.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.first: dict[str, Note] = {}
        self._path = path
        self._file: IO[str] | None = None

    def add(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        """Records that `record` (file, path inside it, row) was left out for `reason`.

        A source can record many rows of one array at once, with their number as `count`.
        """
        self._note(Note(record, reason, detail, count))

    def remark(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        """Records a remark on `record`, which is kept: one of its labels was left out, or is doubtful."""
        self._note(Note(record, reason, detail, count, kept=True))

    def summary(self) -> str:
        """Every reason with its count and the first record, e.g. `40 malformed structure (first: a.xyz[0]: ...)`."""
        return "; ".join(
            f"{count} {reason} (first: {self.first[reason].record}"
            + (f": {self.first[reason].detail})" if self.first[reason].detail else ")")
            for reason, count in sorted(self.counts.items())
        )

    def _note(self, note: Note) -> None:
        (self.remarks if note.kept else self.counts)[note.reason] += note.count
        self.first.setdefault(note.reason, note)
        if self._path is None:
            return
        if self._file is None:  # opened late: no file is created if nothing is recorded
            self._file = self._path.open("w", encoding="utf-8")
        line: dict[str, str | int | bool] = {"record": note.record, "reason": note.reason, "detail": note.detail}
        line |= ({"count": note.count} if note.count != 1 else {}) | ({"kept": True} if note.kept else {})
        self._file.write(json.dumps(line) + "\n")

    def take_over(self, notes: Iterable[Note]) -> None:
        """Adds the notes of another quarantine."""
        for note in notes:
            self._note(note)

    @property
    def total(self) -> int:
        """Number of records left out so far."""
        return self.counts.total()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Notes(Quarantine):
    """A quarantine that keeps its notes in memory, to be added to another one.

    Attributes:
        notes: the notes, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] = []

    def _note(self, note: Note) -> None:
        super()._note(note)
        self.notes.append(note)

    def handed_over(self) -> list[Note]:
        """Returns the notes since the last call."""
        notes, self.notes = self.notes, []
        return notes


def ranges(rows: NDArray[np.integer]) -> str:
    """Formats ascending row numbers as ranges: `0-4,17`."""
    if not len(rows):
        return ""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    first, last = rows[np.r_[0, breaks + 1]].tolist(), rows[np.r_[breaks, len(rows) - 1]].tolist()
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(first, last, strict=True))
