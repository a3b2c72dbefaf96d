"""The training loop: steps, evaluations and checkpoints, for one process and for many."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ramify.batches.batch import Batch
from ramify.batches.edge_search import EdgeSearch
from ramify.batches.loader import Loader, SplitReader, StepAssignment, StepBatches
from ramify.batches.sampler import BatchSampler
from ramify.batches.sampling import sampling_weights
from ramify.checkpoint.checkpoint import Checkpoint
from ramify.errors import RamifyError
from ramify.model.build import LabelSpread, build_model
from ramify.parallel.assignment import Assigner, MicroBatchLimit
from ramify.parallel.fsdp import shard_encoder
from ramify.parallel.grad_sync import GradientSync
from ramify.parallel.layout import Layout
from ramify.parallel.sync import on_rank_zero
from ramify.parallel.world import GATHERED
from ramify.recipe import Recipe
from ramify.run.changes import Changes
from ramify.run.run import Run
from ramify.run.stop import PAUSE, Stop
from ramify.store.manifest import Manifest
from ramify.train.continuation import continuation_texts, run_length
from ramify.train.forward import make_forward
from ramify.train.init_weights import rate_factor, set_trainable
from ramify.train.optimization.objective import Objective
from ramify.train.optimization.optimizer import AveragedWeights, build_optimizer, guard, set_rate
from ramify.train.optimization.precision import Precision
from ramify.train.optimization.schedules import Schedule
from ramify.train.reporting import Callbacks, RunReporter
from ramify.train.state import State, TrainingProgress
from ramify.train.step_metrics import PendingMetrics, StepMetrics, StepResult
from ramify.train.validation import Validator


@dataclass
class Trainer:
    """Trains the model of a recipe; every rank of the run has one.

    Args:
        recipe: of the run.
        run: the run directory.
        data: manifests of the stores of all datasets.
        train, val: readers of the two splits, at least for the datasets whose branches are on this rank.
        layout: of this rank.
        stop: requests to stop this rank early.
        callbacks: called during the run.

    Attributes:
        progress: of the run.
        total_steps: of the whole run.
        stopping: whether a rank was requested to stop.
        stopped_by: after `fit`, the signals, the time limit or `train.stop_after` that stopped the run early; empty
            otherwise.
        continuation: after `restore`, messages about the resumed run.
    """

    recipe: Recipe
    run: Run
    data: Mapping[str, Manifest]
    train: Mapping[str, SplitReader]
    val: Mapping[str, SplitReader]
    layout: Layout
    stop: Stop = field(default_factory=Stop)
    callbacks: Callbacks = field(default_factory=Callbacks)

    def __post_init__(self) -> None:
        options, layout = self.recipe.train, self.layout
        self.watchdog = layout.watchdog
        self.branch_of = self.recipe.branch_of_datasets()
        self._check_validation()
        sizes = {name: self.data[name].splits["train"].structures for name in self.branch_of}
        weights = sampling_weights(sizes, options.sampling, options.temperature)
        self.sampler = BatchSampler(sizes, weights, options.batch, options.seed)
        self.progress = TrainingProgress()
        self.total_steps = self._length()
        self.precision = Precision(options.precision, layout.device)
        self.dtype = self.precision.dtype
        self.train, self.val = self._hosted(self.train), self._hosted(self.val)

        spreads = {name: LabelSpread.of_manifest(self.data[name]) for name in self.branch_of}
        self.model = build_model(self.recipe, spreads, layout.hosted)
        set_trainable(self.model, self.recipe)
        self.model.to(layout.device)
        forceless = [name for name in self.train if self.model.branch(self.branch_of[name]).forces is None]
        units = {name: spread.unit for name, spread in spreads.items()}
        further = {name: {label: s.mad for label, s in spread.labels.items()} for name, spread in spreads.items()}
        self.objective = Objective(self.recipe.objective, units, forceless, further)
        told = self.callbacks if layout.is_rank_zero else Callbacks()
        self.forward = make_forward(self.model, self.recipe, layout, self.sampler.shares(), self.data, told)
        self.shards = shard_encoder(self.model, layout, self.recipe.parallel)
        self.gradients = GradientSync(self.model, layout, self.shards.part)
        factor = partial(rate_factor, self.recipe.finetune)
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer, factor)
        self.averages = AveragedWeights(self.model, self.recipe.optimizer.ema)
        self.schedule = Schedule(self.recipe.schedule, self.recipe.optimizer.lr, self.total_steps)
        labels, self.logged = self.objective.labels, self.objective.names
        self.search = EdgeSearch.of(self.recipe.model.encoder)
        self.validator = Validator(self.val, self.branch_of, layout, self.dtype, labels, search=self.search)
        self.state = State(
            layout, self.model, self.optimizer, self.averages, self.schedule, self.sampler, self.progress
        )
        self.stopping, self.stopped_by = False, ""
        self.continuation: list[str] = []
        self._pending_metrics: PendingMetrics | None = None
        epoch, warmup = self.sampler.steps_per_epoch, self.recipe.schedule.warmup_steps
        self.reporter = RunReporter(
            self.run, layout, self.progress, steps_per_epoch=epoch, warmup=warmup, callbacks=self.callbacks
        )

    @property
    def validates(self) -> bool:
        """Whether any dataset has a validation split. Without one there is no early stopping, and the last weights are
        the best."""
        return any(self.data[name].splits["val"].structures for name in self.branch_of)

    def fit(self) -> list[dict[str, Any]]:
        """Trains until the last step, until the metric stops improving, or until a rank is requested to stop
        (`stopped_by` holds the reason; the state is saved and can be resumed).

        Returns:
            All evaluations of the run, including earlier sessions, oldest first: the `val` lines of metrics.jsonl.

        Raises:
            RamifyError: on all ranks: the loss is not finite; the state before that step is saved as the latest
                checkpoint. Or the run cannot be written, or another program has taken it over.
            Stopped: on this rank alone: a signal before the first step, or while it is compiled.
        """
        started = time.monotonic() - self.progress.seconds
        with ExitStack() as opened:
            with self.watchdog.working():
                opened.enter_context(self.reporter.opened(lambda: self.stopped_by))
                loader = opened.enter_context(self.loader())
            self.stop.begin()
            if self.recipe.train.patience is not None and not self.validates and self.layout.is_rank_zero:
                self.callbacks.warned(
                    f"train.patience: {self.recipe.train.patience} has no effect: no dataset has a validation split"
                )
            if self._evaluation_is_due():  # the last session stopped before it, or initial weights
                self._evaluate_and_save()
            while not self._is_over() and not self._pauses():
                self.step(self._next(loader))
                self.stop.stepped()
                self.progress.seconds = time.monotonic() - started
                self.reporter.stepped(self.total_steps)
                if self._evaluation_is_due() or self._checkpoint_is_due():
                    self.finish_step()
                if self.stopping:
                    self._stop()
                    break
                self._evaluate_and_save()
            if self._pauses() and not self.stopping and not self._is_over():
                self.stopped_by = PAUSE
            patience = self.recipe.train.patience
            if patience and not self.stopping and self._patience_is_over() and self.progress.step < self.total_steps:
                self.reporter.ended_early(self.total_steps, patience)
            elif not self.stopping and self.validates:
                self.reporter.ended()
            on_rank_zero(self.layout, self.reporter.check)
        return self.reporter.evaluations

    def loader(self) -> Loader:
        """The batches of this rank from the next step on."""
        data, device = self.recipe.data, self.layout.device
        ahead = data.workers * data.ahead
        pad, first = self.forward.pad, self.progress.step
        of_step = None if pad is None else lambda batch, step: pad(batch, step - first)
        return Loader(
            self.train,
            self._assignments(),
            self.dtype,
            ahead,
            workers=data.workers,
            device=device,
            pad=of_step,
            search=self.search,
        )

    def _next(self, loader: Loader) -> StepBatches:
        with self.watchdog.working():  # slow reading is no hang
            return next(loader)

    def step(self, work: StepBatches) -> None:
        """One optimizer step, on all ranks together; `fit` calls it for all steps.

        When it returns, the metrics of the step may still be on the device. `finish_step` reads them, at the latest
        during the next step: by then the device has further work queued, so that it never idles. The step is skipped
        where the metrics of the step before show that a rank is `stopping`.
        """
        with self.forward.measured(work, self.total_steps - self.progress.step):
            self._step(work)

    def _step(self, work: StepBatches) -> None:
        step_metrics = self._compute_gradients(work)
        self.finish_step()
        if self.stopping:
            return
        step = self.progress.step
        self._pending_metrics = step_metrics.reduce(
            step, self.gradients.squared_norm(), stop=bool(self.stop.reason) or self.reporter.failed
        )
        guard(self.optimizer, self._pending_metrics.norm, self.recipe.optimizer.clip)
        set_rate(self.optimizer, self.schedule.rate(step))
        self.optimizer.step()
        self.progress.step += 1

    def finish_step(self) -> None:
        """Reads the metrics of the last step, updates the averaged weights and logs; does nothing a second time.

        Raises:
            RamifyError: on all ranks: the loss was not finite. The weights are unchanged, and the step is not counted.
        """
        if self._pending_metrics is None:
            return
        step, result, self._pending_metrics = self._pending_metrics.step, self._pending_metrics.read(), None
        if not math.isfinite(result.norm):
            self.progress.step = step
            self._raise_not_finite(result)
        self.averages.update(step)
        self.stopping = result.stopping > 0
        if self._is_due(self.recipe.train.log_every):
            self.reporter.trained(result, self.schedule.rate(step))

    def save(self, *, best: bool) -> None:
        """Writes the state after the current step as a checkpoint; all ranks must call it."""
        self.watchdog.arrive(f"the checkpoint of step {self.progress.step}")
        best = best or not self.validates
        self.state.save(self.run.checkpoints, self.recipe, self.data, best=best, permit=self.reporter.check)
        self.reporter.saved()

    def restore(self, checkpoint: Checkpoint, changes: Changes | None = None) -> None:
        """Restores the state of the run from `checkpoint`, bit-identical."""
        self.state.restore(checkpoint, changes)
        self.total_steps = self.schedule.total_steps = self._length()
        if changes is not None:
            self.continuation = continuation_texts(checkpoint, changes, self.schedule)

    @property
    def over(self) -> str:
        """The reason why the run is complete; empty while steps remain."""
        if self._patience_is_over() and self.progress.step < self.total_steps:
            return (
                f"early stopping at step {self.progress.step} of {self.total_steps}: no better metric in "
                f"{self.progress.waited} evaluations (train.patience)"
            )
        return f"all {self.total_steps} steps are done" if self._is_over() else ""

    def _compute_gradients(self, work: StepBatches) -> StepMetrics:
        """Forward and backward passes of a step, with gradients summed over the ranks."""
        self.watchdog.arrive(f"step {work.assignment.step + 1}")
        self.model.train()
        step_metrics = StepMetrics(self.sampler.counts(work.assignment.step), self.logged, self.layout)
        self.gradients.clear({self.branch_of[name] for name in work.assignment.labels})
        with self.precision.products(), self.shards.gathered():
            for batch in work.batches[:-1]:
                self.accumulate_gradients(batch, work, step_metrics)
            last = work.batches[-1:]  # empty where this rank has no structures in the step
            with self.gradients.summed([segment.name for batch in last for segment in batch.segments]):
                for batch in last:
                    self.accumulate_gradients(batch, work, step_metrics)
                self.watchdog.arrive(f"the sums of step {work.assignment.step + 1}")
                step_metrics.mark_backward_end()
        return step_metrics

    def accumulate_gradients(self, batch: Batch, work: StepBatches, step_metrics: StepMetrics) -> None:
        """Forward and backward pass of one micro-batch."""
        batch = batch.to(self.layout.device)
        with self.precision.forward():
            predictions = self.forward.predict(batch, stress=self.recipe.objective.stress > 0)
        loss = self.objective(predictions, batch, work.assignment.labels)
        loss.total.backward()
        step_metrics.add(loss)
        self.watchdog.beat()

    def _raise_not_finite(self, result: StepResult) -> None:
        """Saves the state before the step and ends the run with an error on all ranks."""
        self.save(best=False)
        parts = {name: [round(value, 4) for value in values.values()] for name, values in result.datasets.items()}
        error = RamifyError(
            f"step {self.progress.step + 1}: the loss is {result.loss} and its gradient {result.norm}; "
            f"by dataset ({', '.join(self.logged)}): {parts}. The state before this step is kept as `latest`.",
            fix="lower optimizer.lr, or exclude outliers of the labels with datasets.NAME.gates.max_force",
        )
        error.everywhere = True
        raise error

    def _stop(self) -> None:
        """Saves the state; an evaluation that is due follows when the run resumes."""
        self.stopped_by = ", ".join(sorted(set(self.layout.gather(self.stop.reason)) - {""}))
        self.save(best=False)

    def _evaluate_and_save(self) -> None:
        """Evaluates and saves a checkpoint, if they are due after the current step."""
        improved = self._evaluation_is_due() and self._evaluate()
        if improved or self._patience_is_over() or self._checkpoint_is_due() or self._pauses():
            self.save(best=improved)

    def _evaluate(self) -> bool:
        """Errors on the validation splits with the averaged weights; True if the metric is the best so far.

        Products are not rounded, for any precision of the steps: the errors equal those of `ramify evaluate`.
        """
        self.watchdog.arrive(f"the evaluation of step {self.progress.step}")
        with self._averaged(), self.shards.gathered(GATHERED):
            found = self.validator(self.model)
        improved = found.metric < self.progress.best
        self.progress.evaluated = self.progress.step
        if improved:
            self.progress.best, self.progress.best_step, self.progress.waited = found.metric, self.progress.step, 0
        else:
            self.progress.waited += 1
        self.schedule.observe(found.metric)
        self.reporter.evaluated(found, best=improved)
        return improved

    def _check_validation(self) -> None:
        """Refuses a schedule that depends on the metric where no dataset has a validation split."""
        if self.recipe.schedule.kind == "plateau" and not self.validates:
            raise RamifyError(
                "schedule.kind: plateau needs validation structures, but no dataset has any",
                fix="schedule.kind=cosine or constant, or prepare a dataset with split.val above 0",
            )

    def _hosted(self, readers: Mapping[str, SplitReader]) -> dict[str, SplitReader]:
        """The readers of the branches on this rank, with the datasets of one branch next to each other."""
        chosen = {n: r for n, r in readers.items() if self.branch_of[n] in self.layout.hosted}
        return dict(sorted(chosen.items(), key=lambda item: item[1].branch))

    def _assignments(self) -> Iterator[StepAssignment]:
        options = self.recipe.parallel
        budget = MicroBatchLimit(options.micro_batch_atoms or math.inf, options.micro_batch_edges or math.inf)
        stress = self.recipe.objective.stress > 0
        assigner = Assigner(self.sampler, self.train, self.layout.placement, self.layout.rank, budget, stress=stress)
        return assigner.assignments(self.progress.step)

    def _length(self) -> int:
        """Number of steps of the whole run."""
        progress = self.progress
        return run_length(self.recipe, self.sampler.steps_per_epoch, progress.paced_at, progress.epochs)

    def _is_over(self) -> bool:
        return self.progress.step >= self.total_steps or self._patience_is_over()

    def _pauses(self) -> bool:
        """Whether the run has reached `train.stop_after` and has been evaluated since."""
        after = self.recipe.train.stop_after
        return after is not None and (self.progress.evaluated if self.validates else self.progress.step) >= after

    def _patience_is_over(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self.progress.waited >= patience

    def _evaluation_is_due(self) -> bool:
        """Whether an evaluation is due at this step and has not been done."""
        due = self.validates and self._is_due(self._steps(self.recipe.train.evaluate_every))
        return due and self.progress.evaluated < self.progress.step

    def _checkpoint_is_due(self) -> bool:
        return self._is_due(self._steps(self.recipe.train.checkpoint_every))

    def _is_due(self, every: int) -> bool:
        """Whether an action that is repeated every `every` steps, and at the end, is due now."""
        return self.progress.step % every == 0 or self.progress.step == self.total_steps

    def _steps(self, epochs: float) -> int:
        return max(1, round(epochs * self.sampler.steps_per_epoch))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights."""
        self.averages.swap()
        try:
            yield
        finally:
            self.averages.swap()
