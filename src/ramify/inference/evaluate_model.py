"""Errors of a model without its run: of an export on stores, and of any model on a labelled file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ramify.batches.conditions import require_states
from ramify.errors import RamifyError, nearest
from ramify.evaluate.evaluate import UNITS, Subject
from ramify.evaluate.metrics import REFERENCES, Errors
from ramify.inference.branches import BranchInfo, DatasetInfo
from ramify.inference.memory import budget_for
from ramify.inference.model import Model
from ramify.inference.predictor import Predictor
from ramify.inference.saved import Saved
from ramify.inference.screen import screen
from ramify.labels import LABELS
from ramify.recipe import Scale
from ramify.recipe.names import dataset_options
from ramify.references import reference_energy
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.store.manifest import read_manifest
from ramify.store.store import Store
from ramify.structures import Structures


def subject_of_saved(saved: Saved, stores: Path | None) -> Subject:
    """A checkpoint or an export, and the stores of its datasets that are available.

    Args:
        saved: the model.
        stores: the folder of the stores; None for the folder named in its recipe, relative to the working directory or
            to a parent folder of the model.

    Raises:
        RamifyError: none of its datasets has a store there, or a store contains other data than the training data.
    """
    options, network = saved.build()
    folder = stores or _folder_of_stores(saved)
    found: dict[str, Store] = {}
    for group in saved.branches.values():
        for name, info in group.items():
            if (folder / name / "manifest.json").is_file():
                found[name] = _on_scale(Store.open(folder / name, later=True), info)
                require_states(options.conditions, found[name])
    if not found:
        named = ", ".join(name for group in saved.branches.values() for name in group)
        raise RamifyError(
            f"{folder} holds no store of a dataset of {saved.path} ({named})",
            fix="name the folder of the stores with --stores, or evaluate a labelled file with --file",
        )
    branches = {branch: list(group) for branch, group in saved.branches.items()}
    return Subject(network, options, branches, found, saved.step)


def _folder_of_stores(saved: Saved) -> Path:
    """The first folder with a store that the model was trained on, or else with some store of one of its datasets."""
    named = Path(str(saved.recipe.get("stores", "stores")))
    folders = [named] if named.is_absolute() else [named, *(base / named for base in saved.path.resolve().parents)]
    infos = {name: info for group in saved.branches.values() for name, info in group.items()}
    there = [(f, name) for f in folders for name in infos if (f / name / "manifest.json").is_file()]
    for folder, name in there:
        with suppress(RamifyError):  # of another version, or damaged
            train, info = read_manifest(folder / name).splits["train"], infos[name]
            if (train.structures, train.atoms) == (info.structures, info.atoms):
                return folder
    return there[0][0] if there else named


def _on_scale(store: Store, info: DatasetInfo) -> Store:
    """The store with the reference energies of the model; an error if the model was not trained on it."""
    train = store.manifest.splits["train"]
    if (train.structures, train.atoms) != (info.structures, info.atoms):
        raise RamifyError(
            f"the store {store.path} is not the one that the model was trained on: {train.structures} structures with "
            f"{train.atoms} atoms in its train split instead of {info.structures} with {info.atoms}",
            fix="prepare it again from the same files and options, or name another folder with --stores",
        )
    if store.manifest.references.energies == info.references:
        return store
    return store.on_scale(Scale(references=dict(info.references), energy=info.spread.energy, forces=info.spread.forces))


def evaluate_file(
    model: Model,
    path: Path,
    dataset: str | None = None,
    form: str | None = None,
    memory: float | None = None,
    progress: Callable[[int], None] = lambda structures: None,
) -> dict[str, Any]:
    """Errors of every branch on the structures of a labelled file, e.g. a published test set.

    Args:
        model: the model.
        path: the file; it is read like the original files of `dataset`: with the same keys, units and signs.
        dataset: dataset of the model with the energy scale of the labels; may be None if there is only one.
        form: another file format, by its name in recipes, with its default keys.
        memory: bytes that one batch may take; None for all free memory.
        progress: called with the number of structures predicted by a branch since the last call.

    Returns:
        The content of `evaluation.json`, with `split: file`; energies after the reference energies of `dataset`.
        `skipped` counts the structures that were not read or not predicted, by reason.

    Raises:
        RamifyError: there is no such file or dataset, the file has another format, or it has no valid structure.
    """
    name, info, own = _choose(model, dataset)
    quarantine = Quarantine()
    errors = {branch: Errors() for branch in model.branches}
    trivial, skipped = Errors(), dict[str, int]()
    for chunk in _read(model.saved.recipe, name, path, form, quarantine):
        unknown = screen(chunk, model.branches[own], info)  # elements without a reference energy, no atoms, ...
        for reason, _ in unknown.values():
            skipped[reason] = skipped.get(reason, 0) + 1
        structures = chunk.take(np.delete(np.arange(len(chunk)), list(unknown)))
        labels = structures.energy - reference_energy(structures, info.reference_table())
        trivial.count(len(structures), len(structures.numbers))
        trivial.add("energy", -labels / structures.n_atoms)
        trivial.add("forces", -structures.forces)
        trivial.add("stress", -structures.stress)
        for label, scale in info.spread.labels.items():
            trivial.add(label, scale.mean - structures.compared(label))
        for branch, about in model.branches.items():
            refused = _add(errors[branch], model, about, info, structures, memory)
            for reason in refused if branch == own else ():
                skipped[reason] = skipped.get(reason, 0) + 1
            progress(len(structures))
    for reason, count in quarantine.counts.items():
        skipped[reason] = skipped.get(reason, 0) + count
    if not errors[own].structures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items()) or "it is empty"
        raise RamifyError(f"{path} has no structure that can be read and predicted: {reasons}", fix="correct the file")
    no_stress = {"stress_mae": None, "stress_rmse": None}
    return {
        "split": "file",
        "file": str(path),
        "units": UNITS | {label: LABELS[label].error_text for label in info.spread.labels},
        "rows": [{"branch": b, "dataset": name} | no_stress | found.results() for b, found in errors.items()],
        "trivial": [
            {"dataset": name} | no_stress | trivial.means()
            | {"energy_predictor": REFERENCES, "energy_mae_by": {REFERENCES: trivial.mae("energy")}}
        ],
        "branch_of": {name: own},
        "step": model.saved.step,
        "model": {"parameters": sum(p.numel() for p in model.network.parameters())},
        "skipped": skipped,
    }  # fmt: skip


def _add(
    errors: Errors, model: Model, branch: BranchInfo, info: DatasetInfo, structures: Structures, memory: float | None
) -> list[str]:
    """Adds the errors of one branch; returns the reasons of the structures without a prediction."""
    predictor = Predictor(model.network, model.options, branch, info, model.pass_of(branch.name))
    budget = budget_for(model.options, branch.forces, model.device, memory)
    found = predictor.predict(structures, budget)
    kept = np.delete(np.arange(len(structures)), list(found.refused))
    labelled, atoms = structures.take(kept), np.repeat(np.isin(np.arange(len(structures)), kept), structures.n_atoms)
    forces = np.full_like(structures.forces, np.nan) if found.forces_of_atoms is None else found.forces_of_atoms
    errors.count(len(labelled), len(labelled.numbers))
    errors.add("energy", (found.energy[kept] - labelled.energy) / labelled.n_atoms)
    errors.add("forces", forces[atoms] - labelled.forces)
    errors.add("stress", found.stress[kept] - labelled.stress)
    for label, values in found.labels.items():
        errors.add(label, values[kept] - labelled.compared(label))
    return [reason for reason, _ in found.refused.values()]


def _choose(model: Model, dataset: str | None) -> tuple[str, DatasetInfo, str]:
    """Name of the dataset with the energy scale of the labels, its stored facts, and the branch trained on it."""
    known = {name: (info, branch.name) for branch in model.branches.values() for name, info in branch.datasets.items()}
    if dataset is None and len(known) == 1:
        dataset = next(iter(known))
    if dataset is None:
        raise RamifyError(
            f"the model was trained on {len(known)} datasets ({', '.join(known)}), and the level of theory of the file "
            "is not stated",
            fix=f"name it: --dataset {next(iter(known))}",
        )
    if dataset not in known:
        raise RamifyError(
            f"the model was not trained on a dataset '{dataset}'{nearest(dataset, known)}",
            fix=f"name one of: {', '.join(known)}",
        )
    return dataset, *known[dataset]


def _read(
    recipe: Mapping[str, Any], dataset: str, path: Path, form: str | None, quarantine: Quarantine
) -> Iterator[Structures]:
    """The structures of a file, in chunks, read with the keys of a dataset of the recipe, or those of a format."""
    if not path.is_file():
        raise RamifyError(f"{path} does not exist", fix="correct the path of --file")
    entry: dict[str, Any] = dict(recipe["datasets"].get(dataset, {})) if form is None else {"format": form}
    if not entry:
        raise RamifyError(
            f"the recipe of the model has no dataset '{dataset}', so the format of the file is not known",
            fix="name the format with --format, one of: " + ", ".join(sorted(formats())),
        )
    try:
        options = dataset_options(dataset, entry | {"path": str(path)})
    except ValueError as error:
        raise RamifyError(str(error), fix="name another --format, or none") from None
    return formats()[options.format].read(path, options, quarantine)
