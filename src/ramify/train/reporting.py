"""Reports of a run while it trains: lines of metrics, warnings, and the record of its sessions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch

from ramify.errors import RamifyError
from ramify.labels import LABELS, mae, measurable
from ramify.parallel.layout import Layout
from ramify.parallel.sync import on_rank_zero
from ramify.run.learning_curve import learning_curve_text
from ramify.run.run import MetricsLog, Run, finite
from ramify.train.state import TrainingProgress
from ramify.train.step_metrics import StepResult
from ramify.train.validation import Validation


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that are called during a run, on rank zero only.

    Attributes:
        step: called after every step with (step, total steps).
        trained: called with each logged training entry.
        evaluated: called with each validation entry.
        warned: called with each warning.
        noted: called with each other message.
        compiling: context in which a step is compiled.
    """

    step: Callable[[int, int], None] = lambda step, total: None
    trained: Callable[[dict[str, Any]], None] = lambda entry: None
    evaluated: Callable[[dict[str, Any]], None] = lambda entry: None
    warned: Callable[[str], None] = lambda text: None
    noted: Callable[[str], None] = lambda text: None
    compiling: Callable[[], AbstractContextManager[None]] = nullcontext


class RunReporter:
    """Writes the metrics and the sessions of a run. Every rank has one; only that of rank zero writes and calls back.

    Args:
        run: the run directory.
        layout: of this rank.
        progress: of the run.
        steps_per_epoch: of the run.
        warmup: steps before which heads are not compared with the trivial predictor.
        callbacks: called during the run.

    Attributes:
        evaluations: the `val` lines of the whole run so far, oldest first; the same on all ranks.
    """

    def __init__(
        self,
        run: Run,
        layout: Layout,
        progress: TrainingProgress,
        *,
        steps_per_epoch: float,
        warmup: int,
        callbacks: Callbacks,
    ) -> None:
        self._run, self._layout, self._progress = run, layout, progress
        self._steps_per_epoch, self._warmup = steps_per_epoch, warmup
        self._callbacks = callbacks if layout.is_rank_zero else Callbacks()
        self._log: MetricsLog | None = None
        self._failure: RamifyError | None = None
        self.evaluations: list[dict[str, Any]] = []
        self._warned: set[tuple[str, str]] = set()  # datasets and labels that the metric leaves out

    @contextmanager
    def opened(self, stopped_by: Callable[[], str]) -> Iterator[None]:
        """Inside, entries are written. Records the session of this program, which ends with the reason `stopped_by`,
        and unlocks the run afterwards.

        Raises:
            RamifyError: on all ranks: the files of the run cannot be written, or are damaged.
        """
        try:
            self.evaluations = on_rank_zero(self._layout, self._open)
            if self._log is None:
                yield
                return
            progress, device = lambda: (self._progress.step, stopped_by()), self._layout.device
            with self._run.sessions.kept(progress, self._run.check_lock, lambda: _device_memory(device)):
                start = len(self.evaluations)
                try:
                    yield
                except BaseException:
                    with suppress(RamifyError, OSError):  # must not hide the error that ends the run
                        self._log.close("failed")
                    raise
                self._log.close("stopped" if stopped_by() else "finished")
                if len(self.evaluations) > start:
                    self._warn_if_trivial(self.evaluations[-1])
        finally:
            self._log = None
            self._run.unlock()

    def _open(self) -> list[dict[str, Any]]:
        """Opens the files, on rank zero; returns the evaluations of earlier sessions."""
        self._run.check_lock()
        placement = self._layout.placement
        about = {"placement": placement.kind, "hosts": placement.hosts, "reason": placement.reason}
        where = {"ranks": placement.ranks, "device": self._layout.device.type, "changed": self._run.changed}
        self._log = MetricsLog(self._run, self._progress.step, self._progress.evaluated, self._callbacks.warned)
        self._run.sessions.start(step=self._progress.step, **where, **about)
        return self._log.evaluations

    @property
    def failed(self) -> bool:
        """Whether the run can no longer be written, as far as this rank knows; `check` raises the error."""
        return self._failure is not None or self._run.lost

    def check(self) -> None:
        """Checks that the run can be written; call it on rank zero before writing.

        Raises:
            RamifyError: an earlier write has failed, or another program has taken over the run.
        """
        if self._failure is not None:
            raise self._failure
        self._run.check_lock()

    def saved(self) -> None:
        """Records that a checkpoint of the current step is complete."""
        with self._layout.watchdog.working():
            self._write(lambda: self._run.sessions.saved(self._progress.step))

    def stepped(self, total: int) -> None:
        """Reports that one more of `total` steps is complete."""
        self._callbacks.step(self._progress.step, total)

    def trained(self, result: StepResult, rate: float) -> None:
        """Writes the errors of one step with learning rate `rate`."""
        entry = self._entry("train") | {
            "loss": result.loss,
            "lr": rate,
            "grad_norm": result.norm,
            "datasets": result.datasets,
        }
        self._add(entry)
        if not self.failed:
            self._callbacks.trained(entry)

    def evaluated(self, found: Validation, *, best: bool) -> None:
        """Writes the errors on the validation splits."""
        entry = self._entry("val") | {"metric": found.metric, "best": best, "datasets": found.datasets}
        if found.left_out:
            entry["left_out"] = found.left_out
        self.evaluations.append(finite(entry))
        self._add(entry)
        if not self.failed:  # callbacks may write into the run too
            self._callbacks.evaluated(entry)
            self._warn_left_out(found.left_out)

    def ended_early(self, total: int, patience: int) -> None:
        """Reports early stopping: the validation metric has stopped improving before the last step."""
        self._callbacks.noted(
            f"stopped early, at step {self._progress.step} of {total}: none of the last {patience} evaluations "
            f"(train.patience) was better than that of step {self._progress.best_step}"
        )

    def ended(self) -> None:
        """Reports whether a run that took all its steps is finished, by its validation curve."""
        if text := learning_curve_text(self.evaluations):
            self._callbacks.noted(text)

    def _warn_left_out(self, left_out: Mapping[str, list[str]]) -> None:
        """Warns once of each label that the metric leaves out."""
        for name, labels in left_out.items():
            for label in (LABELS[label] for label in labels if (name, label) not in self._warned):
                self._warned.add((name, label.name))
                self._callbacks.warned(
                    f"{name}: the trivial predictor of {label.name} errs by less than {label.floor:g} "
                    f"{label.error_unit}, which is rounding: the metric leaves its {label.name} out"
                )

    def _warn_if_trivial(self, entry: Mapping[str, Any]) -> None:
        """Warns of the heads that are no better than the trivial predictor at the last evaluation after the warm-up."""
        if entry["step"] <= self._warmup:
            return
        for name, errors in entry["datasets"].items():
            for label in LABELS:
                found, trivial = errors.get(mae(label)), errors.get(f"trivial_{mae(label)}")
                if found is not None and trivial is not None and measurable(label, trivial) and not found < trivial:
                    self._callbacks.warned(
                        f"{name}: the {label} head is no better than the trivial predictor "
                        f"({found:.4f} against {trivial:.4f}) after step {entry['step']}"
                    )

    def _entry(self, kind: str) -> dict[str, Any]:
        step, seconds = self._progress.step, self._progress.seconds
        epoch = round(self._progress.epoch(self._steps_per_epoch), 4)
        return {"kind": kind, "step": step, "epoch": epoch, "time": round(seconds, 3)}

    def _add(self, entry: dict[str, Any]) -> None:
        if (log := self._log) is not None:
            with self._layout.watchdog.working():
                self._write(lambda: log.add(entry))

    def _write(self, write: Callable[[], None]) -> None:
        """Calls `write` on rank zero only. Keeps an error for `check`, so that all ranks end with it at their next
        synchronisation; a single process raises it here."""
        if not self._layout.is_rank_zero or self._failure is not None:
            return
        try:
            self._run.check_lock()
            write()
        except RamifyError as error:
            self._failure = error
            if self._layout.size == 1:
                raise


def _device_memory(device: torch.device) -> dict[str, int]:
    """The largest memory of tensors on an NVIDIA or AMD GPU, in bytes."""
    return {"device_memory": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
