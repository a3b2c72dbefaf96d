"""The training loop: steps, evaluations, checkpoints; one loop for every run."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ramify.checkpoint import Checkpoint, save_checkpoint
from ramify.data.loader import Loader, SplitReader
from ramify.data.stream import Stream, sampling_weights
from ramify.errors import RamifyError
from ramify.evaluate.exact import split_errors, trivial_errors
from ramify.evaluate.metrics import Errors
from ramify.model.build import Spread, build_model
from ramify.recipe import Recipe
from ramify.train.objective import Loss, Objective
from ramify.train.optimizer import AveragedWeights, Schedule, build_optimizer
from ramify.train.run import MetricsLog, Run

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, under PyTorch's names. Steps differ: one without structures of a branch passes it by."""


@dataclass
class Progress:
    """Where a run stands besides weights and moments; kept in the checkpoint's manifest.

    Attributes:
        step: optimizer steps taken.
        best: lowest validation metric so far; `best_step` where.
        waited: evaluations since then.
        seconds: time spent training, over all sessions of the run.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What a caller may listen to while a run goes on.

    Attributes:
        step: called after every step with (step, total steps).
        trained: called with each logged training entry.
        evaluated: called with each validation entry.
        warned: called with each warning.
    """

    step: Callable[[int, int], None] = lambda step, total: None
    trained: Callable[[dict[str, Any]], None] = lambda entry: None
    evaluated: Callable[[dict[str, Any]], None] = lambda entry: None
    warned: Callable[[str], None] = lambda text: None


@dataclass
class Trainer:
    """Trains the model of a recipe.

    Args:
        recipe: everything that defines the run.
        run: where it is kept.
        data: the stores' manifests as plain data, by dataset.
        train, val: readers of the two splits, by dataset.
        device: where the model lives.
        watch: who is told.
    """

    recipe: Recipe
    run: Run
    data: Mapping[str, Any]
    train: Mapping[str, SplitReader]
    val: Mapping[str, SplitReader]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        options = self.recipe.train
        sizes = {name: len(reader) for name, reader in self.train.items()}
        weights = sampling_weights(sizes, options.sampling, options.temperature)
        self.stream = Stream(sizes, weights, options.batch, options.seed)
        self.total_steps = options.max_steps or max(1, round(options.epochs * self.stream.steps_per_epoch))
        spreads = {name: Spread.of_manifest(manifest) for name, manifest in self.data.items()}
        self.model = build_model(self.recipe, spreads).to(self.device)
        self.dtype = torch.float64 if options.precision == "fp64" else torch.float32
        branch_of = self.recipe.branch_of_datasets()
        forceless = [name for name, branch in branch_of.items() if self.model.branch(branch).forces is None]
        self.objective = Objective(self.recipe.objective, {n: s.unit for n, s in spreads.items()}, forceless)
        self.optimizer = build_optimizer(self.model, self.recipe.optimizer)
        self.averages = AveragedWeights(self.model, self.recipe.optimizer.ema)
        self.schedule = Schedule(self.recipe.schedule, self.recipe.optimizer.lr, self.total_steps)
        self.progress = Progress()
        self._trivial: dict[str, Errors] = {}

    def fit(self) -> Progress:
        """Trains to the end: all steps, or until the metric stops improving.

        Raises:
            RamifyError: the loss is not finite; the state before that step is kept as the latest checkpoint.
        """
        options, per_epoch = self.recipe.train, self.stream.steps_per_epoch
        evaluate_every = max(1, round(options.evaluate_every * per_epoch))
        checkpoint_every = max(1, round(options.checkpoint_every * per_epoch))
        log = MetricsLog(self.run, self.progress.step)
        started = time.monotonic() - self.progress.seconds
        try:
            with Loader(self.stream, self.train, self.progress.step, self.dtype) as loader:
                while self.progress.step < self.total_steps and not self._patience_is_over():
                    loss, norm, rate = self._step(next(loader))
                    self.progress.step += 1
                    step, last = self.progress.step, self.progress.step == self.total_steps
                    self.watch.step(step, self.total_steps)
                    self.progress.seconds = time.monotonic() - started
                    if step % options.log_every == 0 or last:
                        self._log_training(log, loss, norm, rate)
                    improved = False
                    if step % evaluate_every == 0 or last:
                        improved = self._evaluate(log)
                    if step % checkpoint_every == 0 or improved or last or self._patience_is_over():
                        self.save(best=improved)
        finally:
            log.close()
        return self.progress

    def save(self, *, best: bool) -> None:
        """Writes the state after the current step as a checkpoint."""
        training = {name: p.detach() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            training |= {f"{name}/{moment}": state[moment] for moment in MOMENTS if moment in state}
        with self._averaged():
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        about = {
            "recipe": self.recipe.model_dump(mode="json"),
            "datasets": dict(self.data),
            "branch_of": self.recipe.branch_of_datasets(),
            "trainer": {
                "progress": {k: v for k, v in vars(self.progress).items() if v != math.inf},
                "schedule": {k: v for k, v in self.schedule.state().items() if v != math.inf},
            },
        }
        save_checkpoint(self.run.checkpoints, self.progress.step, weights, training, about, best=best)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up the run where `checkpoint` was written, to the bit."""
        weights, training = checkpoint.weights(), checkpoint.training()
        with torch.no_grad():
            for (name, parameter), average in zip(self.model.named_parameters(), self.averages.averages, strict=True):
                parameter.copy_(training[name])
                average.copy_(weights[name])
                moments = {m: training[f"{name}/{m}"] for m in MOMENTS if f"{name}/{m}" in training}
                if moments:  # cloned: what comes from the file is mapped into memory
                    self.optimizer.state[parameter] = {m: t.clone().to(self.device) for m, t in moments.items()}
        trainer = checkpoint.manifest["trainer"]
        self.progress = Progress(**trainer["progress"])
        self.schedule.restore({"best": math.inf} | trainer["schedule"])

    def _step(self, batch: Any) -> tuple[Loss, Tensor, float]:
        """One optimizer step; returns the loss, the gradient's norm and the learning rate."""
        self.model.train()
        rate = self.schedule.rate(self.progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        wants_stress = self.recipe.objective.stress > 0
        batch = batch.to(self.device)
        with self._autocast():
            predictions = self.model(batch, stress=wants_stress)
        loss = self.objective(predictions, batch)
        self.optimizer.zero_grad()
        loss.total.backward()
        limit = self.recipe.optimizer.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if not math.isfinite(norm):
            self._refuse(loss, norm)
        self.optimizer.step()
        self.averages.update(self.progress.step)
        return loss, norm, rate

    def _refuse(self, loss: Loss, norm: Tensor) -> None:
        """Ends the run before a step that would ruin the weights."""
        self.save(best=False)
        parts = {name: [round(v, 4) for v in values.tolist()] for name, values in loss.datasets.items()}
        raise RamifyError(
            f"step {self.progress.step + 1}: the loss is {float(loss.total.detach())} and its gradient {float(norm)}; "
            f"by dataset (loss, eV/atom, eV/Å): {parts}. The state before this step is kept as `latest`.",
            fix="lower optimizer.lr, or look for wild labels with datasets.NAME.gates.max_force",
        )

    def _log_training(self, log: MetricsLog, loss: Loss, norm: Tensor, rate: float) -> None:
        branches = {}
        for name, values in loss.datasets.items():
            total, energy, forces = values.tolist()
            branches[name] = {"loss": total, "energy_mae": energy, "forces_mae": forces}
        entry = self._entry("train") | {
            "loss": float(loss.total.detach()),
            "lr": rate,
            "grad_norm": float(norm),
            "branches": branches,
        }
        log.add(entry)
        self.watch.trained(entry)

    def _evaluate(self, log: MetricsLog) -> bool:
        """Errors on the validation splits with the averaged weights; True when the metric is the best so far.

        The metric is the mean, over datasets and over energy and forces, of the mean absolute error divided by that of
        the trivial predictor: 0 is perfect, 1 is no better than knowing nothing.
        """
        datasets, ratios = {}, []
        with self._averaged():
            for name, reader in self.val.items():
                branch = reader.branch
                with self._autocast():
                    found = split_errors(self.model, reader, branch, self.device, self.dtype)
                if name not in self._trivial:
                    self._trivial[name] = trivial_errors(reader, self.dtype)
                trivial = self._trivial[name]
                results = {k: v for k, v in found.results().items() if k not in ("structures", "atoms")}
                known = {"trivial_energy_mae": trivial.energy_mae, "trivial_forces_mae": trivial.forces_mae}
                datasets[name] = {"branch": branch, **results, **known}
                ratios += _ratios(found, trivial)
        metric = sum(ratios) / len(ratios) if ratios else math.nan
        improved = metric < self.progress.best
        if improved:
            self.progress.best, self.progress.best_step, self.progress.waited = metric, self.progress.step, 0
        else:
            self.progress.waited += 1
        self.schedule.observe(metric)
        entry = self._entry("val") | {"metric": metric, "best": improved, "datasets": datasets}
        log.add(entry)
        self.watch.evaluated(entry)
        self._warn_if_trivial(datasets)
        return improved

    def _warn_if_trivial(self, datasets: Mapping[str, Any]) -> None:
        """Says loudly which heads know nothing yet, once the warm-up is over."""
        if self.progress.step <= self.recipe.schedule.warmup_steps:
            return
        for name, errors in datasets.items():
            for label in ("energy", "forces"):
                found, trivial = errors[f"{label}_mae"], errors[f"trivial_{label}_mae"]
                if found is not None and trivial and not found < trivial:
                    self.watch.warned(
                        f"{name}: the {label} head is no better than the trivial predictor "
                        f"({found:.4f} against {trivial:.4f}) after step {self.progress.step}"
                    )

    def _patience_is_over(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self.progress.waited >= patience

    def _entry(self, kind: str) -> dict[str, Any]:
        step = self.progress.step
        epoch = step / self.stream.steps_per_epoch
        return {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(self.progress.seconds, 3)}

    def _autocast(self) -> torch.autocast:
        """bf16: products in bfloat16; the model itself keeps geometry, sums and energies in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights."""
        self.averages.swap()
        try:
            yield
        finally:
            self.averages.swap()


def _ratios(found: Errors, trivial: Errors) -> list[float]:
    """Errors over trivial errors, for whatever has labels."""
    pairs = ((found.energy_mae, trivial.energy_mae), (found.forces_mae, trivial.forces_mae))
    return [f / t for f, t in pairs if f is not None and t]
