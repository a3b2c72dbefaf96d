"""Fine-tuning: a run with errors measured before and after."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ramify.batches.open import open_stores
from ramify.errors import RamifyError
from ramify.files import read_json, write_json
from ramify.finetune.errors import FinetuneRow, OldData, old_data, trained_rows
from ramify.finetune.resolve import FinetuneRequest, resolve
from ramify.inference.model import Model, load
from ramify.parallel.sync import each, on_rank_zero
from ramify.parallel.world import World
from ramify.recipe import Recipe
from ramify.run.run import Run
from ramify.run.stop import Stop
from ramify.store.store import Store
from ramify.train.init_weights import read_pretrained
from ramify.train.loop import Trainer
from ramify.train.optimization.precision import require_fast_products
from ramify.train.reporting import Callbacks
from ramify.train.start import EdgeProgress, alone, configure_process, continue_run, start_run
from ramify.untrusted import parsed

SPLIT = "val"
REPORT = "finetune.json"


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a fine-tuning; kept in its run as `finetune.json`.

    Attributes:
        mode: mode of the fine-tuning.
        start: the branch of the model (or `fresh`) that each trained branch started from.
        before, after: errors on the validation splits before the first step, and of the best weights; None while the
            run has not ended.
        missing: old datasets that are not available, so that the errors on them are unknown.
        best_step: step of the weights that the errors after the fine-tuning belong to.
    """

    mode: str
    start: Mapping[str, str]
    before: Sequence[FinetuneRow]
    after: Sequence[FinetuneRow] | None
    missing: Sequence[str]
    best_step: int = 0

    def warnings(self) -> list[str]:
        """Warnings for the user."""
        found = [
            f"{row.dataset}: before the first step the energy MAE of branch '{row.branch}' is {row.energy_mae:.3f} "
            f"eV/atom, more than that of least squares on the composition ({row.trivial_energy_mae:.3f}). If the data "
            "have another level of theory, use a new branch: --mode new-branch"
            for row in self.before
            if self.start.get(row.branch) == row.branch and row.trained and _worse(row)
        ]
        if self.missing:
            found.append(
                f"not available, so errors on them are unknown: {', '.join(self.missing)} (looked for in `stores`)"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with null for numbers that are not finite."""
        return {
            "mode": self.mode,
            "start": dict(self.start),
            "split": SPLIT,
            "before": [_finite(row) for row in self.before],
            "after": None if self.after is None else [_finite(row) for row in self.after],
            "missing": list(self.missing),
            "best_step": self.best_step,
        }


@dataclass
class Finetuning:
    """A fine-tuning that can be continued.

    Attributes:
        trainer: trainer of the run.
        old: data of branches that the run does not train.
        report: the results so far; None before the initial errors are measured.
    """

    trainer: Trainer
    old: OldData
    report: Report | None

    def fit(self) -> None:
        """Trains to the end and evaluates the best weights; all ranks must call it."""
        evaluations = self.trainer.fit()
        if self.trainer.stopped_by:
            return
        layout, run = self.trainer.layout, self.trainer.run
        best = each(layout, lambda: load(run.path, device=layout.device))
        rows = self.old.rows(best, layout)
        if layout.is_rank_zero and self.report is not None:
            best_step = self.trainer.progress.best_step
            entry = [found for found in evaluations if found["step"] == best_step][-1]
            self.report = replace(self.report, after=[*trained_rows(entry), *rows], best_step=best_step)
            with run.writing(run.path / REPORT):
                write_json(run.path / REPORT, self.report.to_dict())


def finetune(
    request: FinetuneRequest,
    recipe: Recipe,
    path: Path,
    callbacks: Callbacks,
    edges: EdgeProgress = lambda dataset, structures: None,
    world: World | None = None,
    stop: Stop | None = None,
    *,
    measured: Callable[[Report], None] = lambda report: None,
) -> Finetuning:
    """Creates the run directory of a fine-tuning and its trainer at step 0.

    Args:
        request: the model and the options of the fine-tuning.
        recipe: new data and training keys.
        path: path of the run; must not exist.
        callbacks, edges: called with the progress.
        world: this process among the others; a single one by default.
        stop: requests to stop the run early.
        measured: called on rank zero with the errors before the first step.

    Raises:
        RamifyError: see `load`, `resolve` and `start_run`; on all ranks.
    """
    ranks = world or alone(recipe)
    configure_process(recipe)
    on_rank_zero(ranks, lambda: Run.require_free(path))
    model = each(ranks, lambda: load(request.model, checkpoint=request.checkpoint, device=ranks.device))
    own = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"scales": {}})})
    whole = each(ranks, lambda: resolve(model.saved, own, _validated(open_stores(own)), request))
    each(ranks, lambda: require_fast_products(whole.train, ranks.device))  # before old data are evaluated
    old, rows = _old(model, whole, ranks)
    initial = _InitialErrors(callbacks, whole, rows, old.missing, path, measured)
    trainer = start_run(whole, path, replace(callbacks, evaluated=initial.evaluated), edges, ranks, stop)
    found = Finetuning(trainer, old, None)
    initial.keep = lambda report: setattr(found, "report", report)
    return found


def _validated(stores: dict[str, Store]) -> dict[str, Store]:
    """The stores; an error if none has validation structures to measure errors on."""
    if not any(len(store.range(SPLIT)) for store in stores.values()):
        raise RamifyError(
            f"a fine-tuning measures its errors on the {SPLIT} splits, but {', '.join(stores)} have none",
            fix=f"prepare a dataset with split.{SPLIT} above 0",
        )
    return stores


def resume(
    path: Path,
    callbacks: Callbacks,
    edges: EdgeProgress,
    ranks: World,
    stop: Stop | None = None,
    *,
    measured: Callable[[Report], None],
) -> Finetuning:
    """Resumes the interrupted fine-tuning in `path`. Arguments and errors as for `finetune`."""
    recipe = each(ranks, lambda: Run.open(path).recipe())
    if recipe.finetune.mode is None:
        raise RamifyError(f"{path} is not the run of a fine-tuning", fix=f"ramify train --resume {path}")
    configure_process(recipe)
    each(ranks, lambda: read_pretrained(recipe.finetune))
    options = recipe.finetune
    model = each(ranks, lambda: load(options.model, checkpoint=options.checkpoint, device=ranks.device))
    old, rows = _old(model, recipe, ranks)
    initial = _InitialErrors(callbacks, recipe, rows, old.missing, path, measured)
    trainer = continue_run(recipe, path, replace(callbacks, evaluated=initial.evaluated), edges, ranks, stop)
    found = Finetuning(trainer, old, _read(path))
    initial.keep = lambda report: setattr(found, "report", report)
    return found


def _old(model: Model, recipe: Recipe, ranks: World) -> tuple[OldData, list[FinetuneRow]]:
    """The available old data, and the errors on them before the first step."""
    old = each(ranks, lambda: old_data(model.saved, recipe, SPLIT))
    return old, old.rows(model, ranks)


@dataclass
class _InitialErrors:
    """Combines the evaluation before the first step with the errors on old data."""

    callbacks: Callbacks
    recipe: Recipe
    rows: Sequence[FinetuneRow]
    missing: Sequence[str]
    path: Path
    measured: Callable[[Report], None]
    keep: Callable[[Report], None] = lambda report: None

    def evaluated(self, entry: dict[str, Any]) -> None:
        if entry["step"]:
            self.callbacks.evaluated(entry)
            return
        options = self.recipe.finetune
        before = [*trained_rows(entry), *self.rows]
        report = Report(str(options.mode), options.start, before, None, self.missing)
        write_json(self.path / REPORT, report.to_dict())
        self.keep(report)
        self.measured(report)


def _read(path: Path) -> Report | None:
    """The report of an earlier session."""
    if not (path / REPORT).is_file():
        return None
    return parsed(Report, read_json(path / REPORT), path / REPORT, fix="restore the file from a copy of the run")


def _worse(row: FinetuneRow) -> bool:
    return bool(row.energy_mae is not None and row.trivial_energy_mae and not row.energy_mae <= row.trivial_energy_mae)


def _finite(row: FinetuneRow) -> dict[str, Any]:
    found = row.to_dict()
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
