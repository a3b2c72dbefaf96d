"""What a run writes down and says while it goes on: lines of metrics, warnings, which program worked on it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ramify.errors import RamifyError
from ramify.labels import LABELS, mae, measurable
from ramify.parallel.layout import Layout
from ramify.parallel.sync import on_rank_zero
from ramify.run.run import MetricsLog, Run, finite
from ramify.train.state import TrainingProgress
from ramify.train.step_metrics import StepResult
from ramify.train.validation import Validation


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What a caller may listen to while a run goes on; of several ranks only the first speaks.

    Attributes:
        step: called after every step with (step, total steps).
        trained: called with each logged training entry.
        evaluated: called with each validation entry.
        warned: called with each warning.
        said: called with what else is worth a line.
    """

    step: Callable[[int, int], None] = lambda step, total: None
    trained: Callable[[dict[str, Any]], None] = lambda entry: None
    evaluated: Callable[[dict[str, Any]], None] = lambda entry: None
    warned: Callable[[str], None] = lambda text: None
    said: Callable[[str], None] = lambda text: None


class RunReporter:
    """The record of one run. Every rank has one; all but the first rank's are silent.

    Args:
        run: where it is kept.
        layout: which rank this is, and what it hosts.
        progress: where the run stands.
        steps_per_epoch: of the run.
        warmup: steps before which nobody expects a head to know anything.
        watch: who is told.

    Attributes:
        evaluations: the lines of kind `val` of the whole run so far, oldest first; the same on all ranks.
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
        self._heard = callbacks if layout.is_rank_zero else Callbacks()
        self._log: MetricsLog | None = None
        self._failure: RamifyError | None = None
        self.evaluations: list[dict[str, Any]] = []
        self._named: set[tuple[str, str]] = set()  # datasets and labels that the metric leaves out

    @contextmanager
    def opened(self, stopped_by: Callable[[], str]) -> Iterator[None]:
        """Inside, entries are written. What this program does for the run is written down, with what `stopped_by` says
        at its end, and the run is free for another one afterwards.

        Raises:
            RamifyError: on all ranks: the files of the run cannot be written, or are damaged.
        """
        try:
            self.evaluations = on_rank_zero(self._layout, self._open)
            if self._log is None:
                yield
                return
            with self._run.sessions.kept(lambda: (self._progress.step, stopped_by()), self._run.check_lock):
                start = len(self.evaluations)
                try:
                    yield
                except BaseException:
                    with suppress(RamifyError, OSError):  # must not hide why the run ends
                        self._log.close()
                    raise
                self._log.close()
                if len(self.evaluations) > start:
                    self._warn_if_trivial(self.evaluations[-1])
        finally:
            self._log = None
            self._run.unlock()

    def _open(self) -> list[dict[str, Any]]:
        """On the first rank: the files, and the evaluations that earlier sessions have left there."""
        self._run.check_lock()
        placement = self._layout.placement
        about = {"placement": placement.kind, "hosts": placement.hosts, "reason": placement.reason}
        where = {"ranks": placement.ranks, "device": self._layout.device.type, "changed": self._run.changed}
        self._log = MetricsLog(self._run, self._progress.step, self._progress.evaluated)
        self._run.sessions.start(step=self._progress.step, **where, **about)
        return self._log.evaluations

    @property
    def failed(self) -> bool:
        """Whether this rank knows of a reason that the run cannot be written any more, which `check` raises."""
        return self._failure is not None or self._run.lost

    def check(self) -> None:
        """Before anything else is written, on the first rank.

        Raises:
            RamifyError: something could not be written, or the run is no longer this program's.
        """
        if self._failure is not None:
            raise self._failure
        self._run.check_lock()

    def saved(self) -> None:
        """A checkpoint of the step that the run stands at is there."""
        with self._layout.watchdog.working():
            self._write(lambda: self._run.sessions.saved(self._progress.step))

    def stepped(self, total: int) -> None:
        """One more of `total` steps is done."""
        self._heard.step(self._progress.step, total)

    def trained(self, outcome: StepResult, rate: float) -> None:
        """The errors of one step, which had the learning rate `rate`."""
        entry = self._entry("train") | {
            "loss": outcome.loss,
            "lr": rate,
            "grad_norm": outcome.norm,
            "datasets": outcome.datasets,
        }
        self._add(entry)
        if not self.failed:
            self._heard.trained(entry)

    def evaluated(self, found: Validation, *, best: bool) -> None:
        """The errors on the validation splits."""
        entry = self._entry("val") | {"metric": found.metric, "best": best, "datasets": found.datasets}
        if found.left_out:
            entry["left_out"] = found.left_out
        self.evaluations.append(finite(entry))
        self._add(entry)
        if not self.failed:  # who listens may write into the run, too
            self._heard.evaluated(entry)
            self._warn_of_left_out(found.left_out)

    def ended_early(self, total: int, patience: int) -> None:
        """The run has ended before its last step, because the validation metric stopped improving."""
        self._heard.said(
            f"stopped early, at step {self._progress.step} of {total}: none of the last {patience} evaluations "
            f"(train.patience) was better than that of step {self._progress.best_step}"
        )

    def _warn_of_left_out(self, left_out: Mapping[str, list[str]]) -> None:
        """Says once what the metric does not measure."""
        for name, labels in left_out.items():
            for label in (LABELS[label] for label in labels if (name, label) not in self._named):
                self._named.add((name, label.name))
                self._heard.warned(
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
                    self._heard.warned(
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
        """Writes, on the first rank alone. What fails is kept for `check`: all ranks are to end by it, where they meet
        next; one by itself ends here."""
        if not self._layout.is_rank_zero or self._failure is not None:
            return
        try:
            self._run.check_lock()
            write()
        except RamifyError as error:
            self._failure = error
            if self._layout.size == 1:
                raise
