"""The runs of trials on disk: the command that trains one to a rung, and how its last session ended."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ramify.labels import LABELS, mae, measurable
from ramify.run.lock import is_locked
from ramify.run.run import Run
from ramify.run.sessions import Sessions
from ramify.run.stop import PAUSE, ended_from_outside
from ramify.search.trials import GEOMETRIC, METRIC, RungResult, Trial
from ramify.system import process_runs

TAIL = 2000
"""Characters at the end of a log that contain the error of a program."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a training ended.

    Attributes:
        how: reached: it has results at further rungs; failed: with an error; ended: otherwise, to be continued.
        results: at the rungs after those of the trial.
        reason: of a failure, or of an end without result.
    """

    how: Literal["reached", "failed", "ended"]
    results: tuple[RungResult, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OrphanTraining:
    """A training whose controller was killed: it goes on until its rung, and is then read like any other.

    Attributes:
        run: the run directory.
        pid, started: number and start time of its process; None where it ran on another machine.
    """

    run: Path
    pid: int
    started: int | None

    def poll(self) -> int | None:
        """None while it may run, then 0: its status is unknown."""
        return None if process_runs(self.pid, self.started) or is_locked(self.run) else 0

    def stop(self) -> None:
        """Sends SIGTERM to the process group, if the process runs on this machine."""
        if process_runs(self.pid, self.started):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGTERM)


def arguments(recipe: Path, run: Path, stop_after: int | None) -> list[str]:
    """Words after `ramify` that start or continue a run until a step; None: to its end."""
    stop = "null" if stop_after is None else str(stop_after)
    return ["train", str(recipe), "--run-dir", str(run), "--continue", f"train.stop_after={stop}"]


def outcome(
    trial: Trial, rungs: Sequence[int], run: Path, log: Path, status: int | None, sessions: int, error: str = GEOMETRIC
) -> Outcome:
    """How the last training of a trial ended, by the files of its run.

    Args:
        trial: active.
        rungs: steps of its rungs.
        run: its run directory.
        log: output of its trainings.
        status: exit status of the process; None if it is unknown, as for an `OrphanTraining`.
        sessions: number of lines of sessions.jsonl before that training.
        error: the first objective.
    """
    lines = Sessions(run).lines()
    last = lines[-1] if lines else {}
    ended = str(last.get("ended", ""))
    if last.get("kind") == "end" and ended in ("finished", f"stopped: {PAUSE}"):
        results = _results(trial, rungs, Run(run), int(last["step"]), error, finished=ended == "finished")
        if results is None:
            return Outcome("failed", reason="no evaluation gave a finite validation metric")
        if results:
            return Outcome("reached", results)
    if len(lines) > sessions and ended.startswith("error: "):
        return Outcome("failed", reason=ended.removeprefix("error: "))
    if status is None or ended_from_outside(status):
        signalled = f", exit status {status}" if status else ""
        return Outcome("ended", reason=f"{ended or 'without a record of its end'}{signalled}")
    return Outcome("failed", reason=f"exit status {status}: {_end_of(log)}")


def _results(
    trial: Trial, rungs: Sequence[int], run: Run, step: int, error: str, *, finished: bool
) -> tuple[RungResult, ...] | None:
    """Results at further rungs of a run that has ended after `step`; None without a metric."""
    evaluations = [entry for entry in run.evaluations() if entry["step"] <= step]
    found = [entry["metric"] if error == METRIC else geometric_mean(entry["datasets"]) for entry in evaluations]
    metrics = [value for value in found if value is not None]
    if not metrics:
        return None
    ranks = next((int(s.get("ranks", 1)) for s in reversed(run.sessions.lines()) if s["kind"] == "start"), 1)
    result = RungResult(step, min(metrics), evaluations[-1]["time"], ranks)
    return tuple(result for at in rungs[len(trial.results) :] if finished or at <= step)


def geometric_mean(datasets: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Geometric mean, over datasets and labels, of error / trivial error; None without any.

    Equal relative gains count the same for a large and a small error. An error of 0 makes it 0.

    Args:
        datasets: of one evaluation in metrics.jsonl. A label whose trivial error is rounding (`Label.floor`) is left
            out, as it is of the metric of the run.
    """
    ratios = []
    for errors in datasets.values():
        for label in LABELS:
            error, trivial = errors.get(mae(label)), errors.get(f"trivial_{mae(label)}")
            if error is not None and trivial is not None and measurable(label, trivial):
                ratios.append(error / trivial)
    return float(np.exp(np.mean(np.log(ratios)))) if ratios and min(ratios) > 0 else (0.0 if ratios else None)


def _end_of(log: Path) -> str:
    """The last message in a log."""
    try:
        text = log.read_bytes()[-TAIL:].decode(errors="replace")
    except OSError as error:
        return f"{log} cannot be read: {error.strerror}"
    found = text[text.rfind("error:") :] if "error:" in text else text
    return " ".join(found.split()) or f"no output, see {log}"
