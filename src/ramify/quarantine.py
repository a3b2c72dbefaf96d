"""What was left out and why: counts in memory, one JSON line per record in a file."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self


@dataclass(frozen=True, slots=True)
class Note:
    """One line: `count` records left out."""

    record: str
    reason: str
    detail: str
    count: int


class Quarantine:
    """Collects the records that a source or a quality gate leaves out.

    Each record becomes one line `{"record": ..., "reason": ..., "detail": ...}`. The reason is a short fixed phrase
    (it is what is counted); the detail holds the numbers. Use as a context manager.

    Args:
        path: the JSON-lines file to write; None counts only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._path = path
        self._file: IO[str] | None = None

    def add(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        """Notes that `record` (file, path inside it, row) was left out for `reason`.

        A source that leaves out many rows of one array at once notes them in one line, `count` of them.
        """
        self.counts[reason] += count
        if self._path is None:
            return
        if self._file is None:  # opened late: no file is left behind when nothing is dropped
            self._file = self._path.open("w", encoding="utf-8")
        line = {"record": record, "reason": reason, "detail": detail} | ({"count": count} if count != 1 else {})
        self._file.write(json.dumps(line) + "\n")

    def take_over(self, notes: Iterable[Note]) -> None:
        """Notes what another one kept."""
        for note in notes:
            self.add(note.record, note.reason, note.detail, note.count)

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
    """A quarantine that keeps its lines in memory, for another one to take over.

    Attributes:
        notes: the lines, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] = []

    def add(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        """See `Quarantine.add`."""
        super().add(record, reason, detail, count)
        self.notes.append(Note(record, reason, detail, count))

    def handed_over(self) -> list[Note]:
        """The lines since the last time."""
        notes, self.notes = self.notes, []
        return notes
