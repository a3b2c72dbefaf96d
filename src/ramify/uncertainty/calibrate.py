"""Error bars of a run: covariances of its training split, factors of its validation split, quality on its test split.

One pass over the training split with the encoder alone; nothing is trained.
"""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ramify.batches.loader import SplitReader
from ramify.batches.open import open_readers
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.checkpoint.pointers import checkpoint_folder
from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Subject, subject_of_run
from ramify.files import write_whole
from ramify.model.branch import Branch
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import checksums_of_parts
from ramify.parallel.startup.launch import detect_launcher
from ramify.uncertainty.error_bars import (
    FILE,
    BranchBars,
    BranchFacts,
    DatasetScales,
    ErrorBars,
    Floats,
    Scale,
)
from ramify.uncertainty.last_layer import energy_features, force_features, whitening
from ramify.uncertainty.measures import POINTS, fitted_floor, measured_quality, ml_scale
from ramify.uncertainty.observe import MEASURED_STRUCTURES, Observed, Progress, encoded, observe

TRAINING_STRUCTURES = 100_000
"""Training structures of each dataset in its covariance: every k-th batch of larger splits."""
ENOUGH = 20
"""Smallest number of validation structures with a set of elements for a factor of its own: it is then uncertain by
about 1/sqrt(2·20) = 16 %."""
DIRECTIONS = 32
"""Derivatives from which the variances of conservative forces are estimated, see `conservative_force_std`."""
RIDGES = np.geomspace(1e-9, 1.0, 19)
"""Candidates of ς², in units of the mean eigenvalue of the covariance. Below 1e-9, the rounding of float32 features
would be amplified to the size of the features."""
SMALLEST = 1e-12
"""Added to observed errors of zero, so that no factor is zero."""


def calibrate(
    subject: Subject,
    weights: Mapping[str, str],
    directions: int = DIRECTIONS,
    progress: Progress = lambda structures: None,
) -> tuple[ErrorBars, dict[str, Floats]]:
    """The error bars of all branches of a trained model.

    Args:
        subject: the model and the stores of its datasets.
        weights: checksums of the parts of the model.
        directions: number of derivatives for the variances of conservative forces, at most one per last feature.
        progress: called with the number of structures completed since the last call.

    Returns:
        The error bars, and arrays with the errors and error bars of the test split, `DATASET.energy_error`, `_std`.

    Raises:
        RamifyError: a training or validation split has no energy labels.
    """
    network = subject.network.eval().requires_grad_(False)
    readers = {
        split: open_readers(subject.model, subject.branches, subject.stores, split, edge_cache=0.0)
        for split in ("train", "val", "test")
    }
    branches: dict[str, BranchBars] = {}
    measured: dict[str, dict[str, Any]] = {}
    points: dict[str, Floats] = {}
    for branch, group in subject.branches.items():
        bars = _covariances(network, branch, [readers["train"][name] for name in group], progress)
        validation = [readers["val"][name] for name in group]
        bars = _with_directions(_regularised(network, branch, bars, validation, progress), directions)
        seen = {r.dataset: observe(network, branch, bars, r, progress) for r in validation}
        scales = {name: DatasetScales(**_scales(found)) for name, found in seen.items()}
        branches[branch] = bars = replace(bars, facts=bars.facts.model_copy(update={"datasets": scales}))
        for name in group:
            if len(readers["test"][name]):
                test = _scaled(observe(network, branch, bars, readers["test"][name], progress), scales[name])
                found = _points(test, seen[name])
                points |= {f"{name}.{key}": value for key, value in found.items()}
                measured[name] = measured_quality(found)
    return ErrorBars(branches, dict(weights), measured), points


def calibrate_run(
    run: Path,
    which: str = "best",
    stores: Path | None = None,
    device: torch.device | str = "cpu",
    directions: int = DIRECTIONS,
    progress: Progress = lambda structures: None,
) -> ErrorBars:
    """Calibrates the error bars of a checkpoint of a run and writes them into the run.

    How the model was placed while it was trained has no influence: this process reads the whole model.

    Args:
        run: the run directory; the stores of its recipe must exist.
        which: `best`, `latest` or the name of a checkpoint folder.
        stores: the folder of its stores; None to find it, see `subject_of_run`.
        device: the device.
        directions: see `calibrate`.
        progress: called with the number of structures completed since the last call.

    Raises:
        RamifyError: several processes were started, `run` is not a run, a store is missing, or a split has no labels.
    """
    if (size := detect_launcher().world) > 1:
        raise RamifyError(
            f"error bars are calibrated by one process, {size} were started",
            fix="run `ramify calibrate` without torchrun, srun or mpiexec; it reads any run",
        )
    if not (run / "recipe.yaml").is_file():
        raise RamifyError(f"{run} is not a run directory; error bars need its training data", fix="give a run")
    subject = subject_of_run(run, which, stores)
    weights = open_checkpoint(checkpoint_folder(run, which)).weights(list(subject.branches))
    moved = replace(subject, network=subject.network.to(device))
    bars, points = calibrate(moved, checksums_of_parts(weights), directions, progress)
    (run / POINTS).unlink(missing_ok=True)  # a program that is killed leaves none, never those of other error bars
    bars.write(run / FILE)
    content = io.BytesIO()
    np.savez_compressed(content, **{k: v.astype(np.float32) for k, v in points.items()})  # type: ignore[arg-type]
    write_whole(run / POINTS, content.getvalue())
    return bars


def _covariances(network: MultiBranch, branch: str, readers: Sequence[SplitReader], progress: Progress) -> BranchBars:
    """Sums over the labelled training structures and atoms."""
    heads, sums, count = network.branch(branch), dict[str, Tensor](), 0
    for reader in readers:
        for found in encoded(network, branch, reader, TRAINING_STRUCTURES, progress):
            labelled = ~torch.isnan(found.batch.energy)
            features = energy_features(heads, found.scalars, found.batch)[labelled]
            count += len(features)
            _add(sums, "covariance", features)
            if heads.force is not None and found.vectors is not None:
                atoms = ~torch.isnan(found.batch.forces).any(1)
                h, v = force_features(heads.force, found.scalars[atoms], found.vectors[atoms])
                _add(sums, "hidden", h)
                _add(sums, "vectors", v.reshape(-1, v.shape[2]))
    if not count:
        raise RamifyError(f"branch '{branch}' has no energy labels in its training split", fix="train it on energies")
    return BranchBars(BranchFacts(ridge=1.0, structures=count, datasets={}), _ridged(heads, sums))


def _add(sums: dict[str, Tensor], name: str, rows: Tensor) -> None:
    """Adds the outer products of rows (n, D)."""
    sums[name] = rows.T @ rows + sums.get(name, 0.0)


def _ridged(heads: Branch, sums: Mapping[str, Tensor]) -> dict[str, Floats]:
    """The covariances; those of direct forces get a regularisation of 1e-6 of their mean eigenvalue."""
    found = {name: matrix.cpu().numpy() for name, matrix in sums.items()}
    for name in ("hidden", "vectors"):
        if name in found:
            mean = float(np.trace(found[name])) / len(found[name])
            found[name] = found[name] + (1e-6 * mean or 1.0) * np.eye(len(found[name]))
    return found


def _regularised(
    network: MultiBranch, branch: str, bars: BranchBars, readers: Sequence[SplitReader], progress: Progress
) -> BranchBars:
    """With the ς² of `RIDGES` that gives validation energies the largest likelihood, with the best factor for each."""
    values, axes = torch.linalg.eigh(torch.from_numpy(bars.tensors["covariance"]))
    unit = float(values.clamp(min=0).mean()) or 1.0
    ridges = RIDGES * unit
    losses = np.zeros(len(ridges))
    for reader in readers:
        squares, errors = [], []
        for found in encoded(network, branch, reader, MEASURED_STRUCTURES, progress):
            error = (found.energy - found.batch.energy).double().cpu()
            known = ~torch.isnan(error)
            features = energy_features(network.branch(branch), found.scalars, found.batch).cpu()
            squares.append((features[known] @ axes).square().numpy())
            errors.append(error[known].numpy())
        if not sum(map(len, errors)):
            raise RamifyError(
                f"the validation split of '{reader.dataset}' has no energy labels, so that error bars have no scale",
                fix="prepare the dataset with a validation split that has labels",
            )
        square, seen = np.concatenate(squares), np.concatenate(errors) + SMALLEST
        for k, ridge in enumerate(ridges):
            std = np.sqrt((square / (values.clamp(min=0).numpy() + ridge)).sum(1))
            losses[k] += len(seen) * fitted_floor(seen, std)[1]
    best = float(ridges[int(np.argmin(losses))])
    return replace(bars, facts=bars.facts.model_copy(update={"ridge": best}))


def _with_directions(bars: BranchBars, count: int) -> BranchBars:
    """With `count` directions of derivatives, see `conservative_force_std`; random ones, the same in every call."""
    white = whitening(torch.from_numpy(bars.tensors["covariance"]), bars.facts.ridge).numpy()
    size = len(white)
    if count < size:
        chosen, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((size, count)))
        white = white @ chosen * math.sqrt(size / count)
    return replace(bars, tensors={**bars.tensors, "directions": white})


def _scales(seen: Observed) -> dict[str, Scale | None]:
    """The factors of a dataset."""
    counts = Counter(seen.energy_sets.tolist())
    energy = _scale(seen.energy_error, seen.energy_std, seen.energy_sets, counts)
    forces = None
    if len(seen.forces_error):
        forces = _scale(seen.forces_error, seen.forces_std, seen.force_sets, seen.force_structures)
    return {"energy": energy, "forces": forces}


def _scale(error: Floats, std: Floats, sets: NDArray[np.str_], structures: Mapping[str, int]) -> Scale:
    error = error + SMALLEST
    floor, _ = fitted_floor(error, std)
    raised = np.hypot(std, floor)
    own = {str(k): ml_scale(error[sets == k], raised[sets == k]) for k, n in structures.items() if n >= ENOUGH}
    return Scale(floor=floor, all=ml_scale(error, raised), rows=len(error), by_elements=own)


def _scaled(seen: Observed, scales: DatasetScales) -> Observed:
    """With calibrated standard deviations."""
    energy = scales.energy.apply(seen.energy_std, seen.energy_sets.tolist())
    if scales.forces is None:
        return replace(seen, energy_std=energy, forces_std=np.full_like(seen.forces_std, np.nan))
    forces = scales.forces.apply(seen.forces_std, seen.force_sets.tolist())
    return replace(seen, energy_std=energy, forces_std=forces)


def _points(test: Observed, validation: Observed) -> dict[str, Floats]:
    """Errors and error bars of the test split, and the constant that competes with the latter: the root mean square of
    the validation errors."""
    found: dict[str, Floats] = {}
    for name in ("energy", "forces"):
        error, std = getattr(test, f"{name}_error"), getattr(test, f"{name}_std")
        other = getattr(validation, f"{name}_error")
        if len(error) and len(other) and not np.isnan(std).any():
            constant = np.sqrt(np.mean(np.square(other + SMALLEST)))
            found |= {f"{name}_error": error, f"{name}_std": std, f"{name}_constant": np.asarray(constant)}
    return found
