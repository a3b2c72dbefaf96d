"""Reads and checks a run directory: recipe, `evaluation.json`, `data.json`, history, predictions."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ramify import labels
from ramify.errors import RamifyError
from ramify.evaluate.metrics import PREDICTED, REFERENCES, TRUE, ElementErrors, element_errors
from ramify.evaluate.publish import ERRORS, evaluation_folder, predictions_folder
from ramify.files import parse_json, read_json
from ramify.notebook import html_table
from ramify.recipe.overrides import read_yaml
from ramify.store.manifest import Manifest
from ramify.untrusted import is_name, parsed


class Means(BaseModel):
    """Errors on one dataset, in the units of `ramify.labels`: `NAME_mae` and `NAME_rmse` of every label."""

    model_config = ConfigDict(extra="allow")

    dataset: str
    energy_mae: float | None = None
    forces_mae: float | None = None
    stress_mae: float | None = None
    energy_rmse: float | None = None
    forces_rmse: float | None = None
    stress_rmse: float | None = None

    def mae(self, label: str) -> float | None:
        """Mean absolute error of a label; None where it was not labelled or not predicted."""
        return getattr(self, labels.mae(label), None)

    def rmse(self, label: str) -> float | None:
        """Root mean square error, as `mae`."""
        return getattr(self, labels.rmse(label), None)


class TrivialRow(Means):
    """Errors of the trivial predictors on one dataset: no forces, no stress, and one energy per element."""

    energy_predictor: str = REFERENCES
    """The better predictor of energies; the errors are its errors."""
    energy_mae_by: dict[str, float | None] = {}
    """Mean absolute error, eV/atom, by predictor of energies."""


class ErrorRow(Means):
    """Errors of one branch on one dataset; None where the dataset has no such label or the branch no such head."""

    branch: str
    structures: int
    atoms: int
    refitted_energy_mae: float | None = None
    """eV/atom, after the references of a dataset that the branch was not trained on were fitted again to its
    predictions; None where they were not."""


class Evaluation(BaseModel):
    """`evaluation.json`: every branch on every dataset of one split."""

    split: str
    units: dict[str, str] = {}
    rows: list[ErrorRow]
    trivial: list[TrivialRow]
    branch_of: dict[str, str]
    step: int
    model: dict[str, Any] = {}

    def row(self, branch: str | None, dataset: str) -> ErrorRow | None:
        """Errors of `branch` on `dataset`, or None if they were not evaluated."""
        return next((r for r in self.rows if r.branch == branch and r.dataset == dataset), None)

    def trivial_of(self, dataset: str) -> TrivialRow:
        """The trivial predictor on `dataset`; all None where it was not evaluated."""
        return next((t for t in self.trivial if t.dataset == dataset), TrivialRow(dataset=dataset))

    @property
    def branches(self) -> list[str]:
        """Branch names in the order of the file."""
        return list(dict.fromkeys(r.branch for r in self.rows))


@dataclass(frozen=True)
class Geometry:
    """The structures that predictions belong to.

    Attributes:
        positions: (N, 3) Å.
        cell: (S, 3, 3) Å; rows are lattice vectors, zero where there is no cell.
        pbc: (S, 3) bool.
        total_energy: (S,) the label in eV, reference energies included.
        groups: (S,) name of the group of each structure.
    """

    positions: NDArray[np.floating]
    cell: NDArray[np.floating]
    pbc: NDArray[np.bool_]
    total_energy: NDArray[np.floating]
    groups: NDArray[np.str_]


@dataclass(frozen=True)
class StoredPredictions:
    """Labels and predictions of a dataset's own branch on the evaluated split (`predictions/<dataset>.npz`).

    Attributes:
        true, predicted: by label, in its unit of errors: energies (S,) in eV/atom after the reference energies, forces
            (N, 3) in eV/Å; NaN without label or head.
        n_atoms: (S,).
        numbers: (N,).
        names: (S,) the origin of each structure.
        energy_trivial: (S,) of the better trivial predictor; 0 where the reference energies are the better one.
        geometry: None in files of earlier evaluations, which have no structures.
    """

    true: dict[str, NDArray[np.floating]]
    predicted: dict[str, NDArray[np.floating]]
    n_atoms: NDArray[np.integer]
    numbers: NDArray[np.integer]
    names: NDArray[np.str_]
    energy_trivial: NDArray[np.floating]
    geometry: Geometry | None = None

    def error(self, label: str) -> NDArray[np.float64]:
        """Prediction minus label, in the label's unit of errors."""
        return self.predicted[label].astype(np.float64) - self.true[label]

    def error_norms(self, label: str) -> NDArray[np.float64]:
        """(rows,) norm of the error of each row."""
        error = self.error(label)
        return np.abs(error) if error.ndim == 1 else np.linalg.norm(error.reshape(len(error), -1), axis=1)

    def trivial_norms(self, label: str) -> NDArray[np.float64]:
        """As `error_norms`, of the trivial predictors."""
        if label == "energy":
            return np.abs(self.true["energy"].astype(np.float64) - self.energy_trivial)
        return np.linalg.norm(self.true["forces"].astype(np.float64), axis=1)

    def by_element(self) -> dict[str, ElementErrors]:
        """Errors by element, see `element_errors`."""
        return element_errors(self.numbers, self.n_atoms, self.error("energy"), self.error("forces"))


@dataclass(frozen=True)
class Results:
    """One run directory.

    Attributes:
        path: the directory.
        recipe: the resolved recipe as plain values; `recipe_text` as written.
        evaluation: `evaluation.json`.
        data: `data.json`: the store manifest of each dataset; empty if the run has none.
        train, val: the lines of `metrics.jsonl`, in the order of steps.
    """

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    evaluation: Evaluation
    data: dict[str, Manifest]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> Results:
        """Reads a run directory, except for the predictions, which `predictions` reads.

        Raises:
            RamifyError: it is not a run directory, it has not been evaluated, or a file in it is damaged.
        """
        path = Path(path)
        if not (path / "recipe.yaml").is_file():
            what = "has no recipe.yaml" if path.is_dir() else "does not exist"
            raise RamifyError(
                f"{path} is not a run directory: it {what}",
                fix="name the folder that 'ramify train RECIPE --run DIR' wrote",
            )
        if not (evaluation_folder(path) / ERRORS).is_file():
            raise RamifyError(
                f"{path} has not been evaluated: it has no evaluation.json", fix=f"ramify evaluate {path}"
            )
        try:
            text = (path / "recipe.yaml").read_text(encoding="utf-8")
            recipe = read_yaml(text)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RamifyError(f"{path / 'recipe.yaml'} is not YAML: {error}", fix="restore the file") from None
        if not isinstance(recipe, dict):
            raise RamifyError(f"{path / 'recipe.yaml'} holds no recipe", fix="restore the file")
        history = _history(path / "metrics.jsonl")
        return cls(
            path=path,
            recipe=recipe,
            recipe_text=text,
            evaluation=_evaluation(path),
            data=_manifests(path / "data.json"),
            train=history["train"],
            val=history["val"],
        )

    def _repr_html_(self) -> str:
        """In Jupyter: the errors on each dataset, of the branch that predicts it and of the trivial predictors."""
        own = {dataset: row for dataset in self.datasets if (row := self.own_row(dataset)) is not None}
        shown = [name for name in labels.LABELS if any(row.mae(name) is not None for row in own.values())]
        head = [f"{name} MAE, {labels.LABELS[name].error_unit}" for name in shown]
        rows = [
            [dataset, row.branch, *(means.mae(name) for name in shown for means in (row, trivial))]
            for dataset, row in own.items()
            for trivial in [self.evaluation.trivial_of(dataset)]
        ]
        title = f"Run {self.name}: errors on the {self.evaluation.split} split"
        return html_table(title, ["dataset", "branch", *(part for name in head for part in (name, "trivial"))], rows)

    @property
    def trained_on(self) -> list[str]:
        """Datasets that the model was trained on, in the order of the recipe."""
        branches = self.recipe.get("branches")
        if isinstance(branches, dict):
            return [dataset for group in branches.values() for dataset in group]
        return list(self.recipe.get("datasets") or self.evaluation.branch_of)

    def trained_on_label(self, label: str) -> bool:
        """Whether the model was trained on a label."""
        objective = self.recipe.get("objective") or {}
        if label in labels.BUILT_IN:
            return bool(objective.get(label, labels.LABELS[label].weight))
        weight = (objective.get("labels") or {}).get(label, labels.LABELS[label].weight)
        rows = (self.own_row(dataset) for dataset in self.trained_on)
        return bool(weight) and any(row is not None and row.mae(label) is not None for row in rows)

    @property
    def datasets(self) -> list[str]:
        """Datasets trained on or evaluated, in the order of the recipe; those that it does not name come last."""
        named = [*(self.recipe.get("datasets") or ()), *(t.dataset for t in self.evaluation.trivial)]
        return list(dict.fromkeys([*named, *(r.dataset for r in self.evaluation.rows)]))

    @property
    def name(self) -> str:
        """The `name` of the recipe, or else the name of such a model in the paper."""
        if self.recipe.get("name"):
            return str(self.recipe["name"])
        trained, branches = self.trained_on, self.evaluation.branches
        if len(trained) == 1:
            return f"Model-{trained[0]}"
        if len(branches) == 1:
            return "Baseline-All"
        return "MTL-All" if len(branches) == len(trained) else "MTL-" + "-".join(branches)

    def own_branch(self, dataset: str) -> str | None:
        """The branch that predicts `dataset`: its own, or the only one there is; None if neither exists."""
        branches = self.evaluation.branches
        return self.evaluation.branch_of.get(dataset, branches[0] if len(branches) == 1 else None)

    def own_row(self, dataset: str) -> ErrorRow | None:
        """Errors of the branch that predicts `dataset`."""
        return self.evaluation.row(self.own_branch(dataset), dataset)

    def predictions(self, dataset: str) -> StoredPredictions | None:
        """Saved predictions of a dataset, or None if the run has none or the name is not valid.

        Raises:
            RamifyError: the file is damaged.
        """
        path = predictions_folder(self.path) / f"{dataset}.npz"
        if not is_name(dataset) or not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                there = [n for n in labels.LABELS if n in labels.BUILT_IN[:2] or f"{n}{TRUE}" in file]
                true = {name: file[name + TRUE] for name in there}
                predicted = {name: file[name + PREDICTED] for name in there}
                trivial = file["energy_trivial"] if "energy_trivial" in file else np.zeros(len(true["energy"]))
                geometry = Geometry(*(file[f.name] for f in fields(Geometry))) if "positions" in file else None
                n_atoms, numbers, names = file["n_atoms"], file["numbers"], file["names"]
                return StoredPredictions(true, predicted, n_atoms, numbers, names, trivial, geometry)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise RamifyError(f"{path} is damaged: {error}", fix=f"ramify evaluate {self.path}") from None


def _evaluation(run: Path) -> Evaluation:
    path, fix = evaluation_folder(run) / ERRORS, f"ramify evaluate {run}"
    return parsed(Evaluation, read_json(path, fix=fix), path, fix=fix)


def _manifests(path: Path) -> dict[str, Manifest]:
    fix = "restore the file: `ramify train` wrote it, from the manifests of the stores"
    return parsed(dict[str, Manifest], read_json(path, fix=fix) if path.is_file() else {}, path, fix=fix)


def _history(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines by kind. Of a step logged twice (a resumed run repeats steps) the last line counts."""
    steps: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "val": {}}
    if not path.is_file():
        return {"train": [], "val": []}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break  # an incomplete line, which is still being written
        try:
            record = parse_json(line)
            if record["kind"] in steps:
                steps[record["kind"]][int(record["step"])] = record
        except (ValueError, KeyError, TypeError) as error:
            raise RamifyError(
                f"{path}, line {number}, is not a run record: {type(error).__name__}: {error}", fix="remove that line"
            ) from None
    return {kind: [found[step] for step in sorted(found)] for kind, found in steps.items()}
