"""Writes an extended XYZ file in chunks, and resumes after an interruption at any moment.

OUT.part grows, OUT.skipped.jsonl lists skipped structures, and OUT.part.json states the number of completed frames
of the input and the corresponding sizes of both files in bytes. It is replaced atomically after each chunk; on resume,
both files are truncated to these sizes. When all frames are done, OUT.part is renamed to OUT.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ase import Atoms

from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.inference.jobs.frames import append_frames
from ramify.sources.quarantine import Quarantine
from ramify.untrusted import parsed


@dataclass
class OutputProgress:
    """Progress of an output file.

    Attributes:
        job: checksum of all inputs of the job.
        frames: number of completed frames of the input.
        written: number of structures written.
        skipped: numbers of skipped structures, by reason.
        warnings: number of results with a warning.
        bytes, skipped_bytes: sizes of the two files.
        errors: by branch, sums of errors against the labels of the input (`ramify.inference.label_errors`).
    """

    job: str
    frames: int = 0
    written: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    warnings: int = 0
    bytes: int = 0
    skipped_bytes: int = 0
    errors: dict[str, dict[str, list[float]]] = field(default_factory=dict)


class ResumableOutput:
    """The output of one job.

    Args:
        target: must not exist.
        job: checksum of all inputs of the job.
        restart: discard an interrupted job.

    Attributes:
        progress: progress of the file; updated by the caller.
        quarantine: receives skipped structures.

    Raises:
        RamifyError: `target` exists, or the interrupted job was another one.
    """

    def __init__(self, target: Path, job: str, *, restart: bool) -> None:
        if target.exists():
            raise RamifyError(f"{target} exists already", fix="choose another --out, or move it away")
        self.target, self._part = target, target.with_name(f"{target.name}.part")
        self._state = target.with_name(f"{target.name}.part.json")
        self._skipped = target.with_name(f"{target.name}.skipped.jsonl")
        self.quarantine = _Lines()
        self.progress = OutputProgress(job)
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._state.is_file() and not restart:
            begun = parsed(OutputProgress, read_json(self._state), self._state, fix="start again with --restart")
            if begun.job != job:
                raise RamifyError(
                    f"{self._part} was started with another input, model, branch or option",
                    fix="choose another --out, or start again with --restart",
                )
            self.progress = begun
        for path, size in ((self._part, self.progress.bytes), (self._skipped, self.progress.skipped_bytes)):
            there = path.stat().st_size if path.is_file() else 0
            if not 0 <= size <= there:
                raise RamifyError(
                    f"{path} has {there} bytes, but {self._state.name} states {size}",
                    fix="start again with --restart",
                )
            if there:
                os.truncate(path, size)

    def put(self, images: Sequence[Atoms]) -> None:
        """Appends structures and the records skipped since the last call, and writes the state to disk."""
        progress = self.progress
        with self._part.open("a", encoding="utf-8") as file:
            append_frames(file, images)
            progress.bytes = _settled(file)
        if lines := self.quarantine.take():
            with self._skipped.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                progress.skipped_bytes = _settled(file)
        progress.written += len(images)
        progress.skipped = dict(Counter(progress.skipped) + self.quarantine.counts)
        self.quarantine.counts.clear()
        write_json(self._state, asdict(progress))

    def finish(self) -> None:
        """Renames the finished part to its final name."""
        self.put([])
        os.replace(self._part, self.target)
        self._state.unlink()


class _Lines(Quarantine):
    """Collects skipped records as lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[dict[str, Any]] = []

    def add(self, record: str, reason: str, detail: str = "", count: int = 1) -> None:
        super().add(record, reason, detail, count)
        self._lines.append({"record": record, "reason": reason, "detail": detail})

    def take(self) -> list[dict[str, Any]]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines


def _settled(file: TextIO) -> int:
    """Flushes the file to disk; returns its size."""
    file.flush()
    os.fsync(file.fileno())
    return file.tell()
