"""Fits a router to the training data of the branches of a run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ramify.batches.open import open_stores
from ramify.errors import RamifyError
from ramify.inference.model import Model, load
from ramify.inference.saved import ROUTER
from ramify.packing import evenly
from ramify.recipe import load_recipe
from ramify.route.classifier import Floats, Labels, calibration_error, fit, fit_temperature
from ramify.route.features import features
from ramify.route.router import Router, nearest_distance
from ramify.store.store import Store

TRAINING, VALIDATION = 1000, 600
"""Largest numbers of structures of each branch, evenly spaced in its splits."""
ANCHORS = 400
"""Largest number of training structures of each branch that are kept for the novelty of structures."""
REACHED = 0.99
"""Fraction of the validation structures of a branch that count as similar to its training data."""


def fit_router(run: Path, progress: Callable[[int], None] = lambda structures: None) -> Router:
    """Fits a router for the best weights of a run and writes it into the run; `ramify export` includes it.

    The temperature is fitted to every second validation structure; accuracy and calibration error are measured on the
    others.

    Args:
        run: directory of the run; the stores of its recipe must exist.
        progress: called with the number of structures completed since the last call.

    Raises:
        RamifyError: `run` is not a run, its stores are missing, or it has only one branch.
    """
    if not (run / "recipe.yaml").is_file():
        raise RamifyError(f"{run} is not a run directory; a router is fitted to training data", fix="give a run")
    model, recipe = load(run), load_recipe(run / "recipe.yaml")
    stores, branches = open_stores(recipe), recipe.datasets_of_branches()
    if len(branches) < 2:
        raise RamifyError(f"{run} trains only one branch; there is nothing to choose", fix="name that branch")
    found = {
        split: [
            _features(model, [stores[name] for name in group], split, most, progress) for group in branches.values()
        ]
        for split, most in (("train", TRAINING), ("val", VALIDATION))
    }
    classifier = fit(*_joined(found["train"]), len(branches))
    width = model.options.encoder.width
    names = tuple(branches)
    router = Router(names, classifier, {}, {}, {}, model.saved.encoder_sha256)
    anchors = {
        name: router.standardised(rows[evenly(len(rows), ANCHORS), -width:])
        for name, rows in zip(names, found["train"], strict=True)
    }
    reach = {
        name: _reach(router.standardised(rows[:, -width:]), anchors[name])
        for name, rows in zip(names, found["val"], strict=True)
    }
    x, y = _joined(found["val"])
    logits = classifier.logits(x)
    temperature = fit_temperature(logits[::2], y[::2])
    warm = type(classifier)(classifier.mean, classifier.scale, classifier.weight, classifier.bias, temperature)
    measured = _measured(warm.probabilities(x[1::2]), y[1::2], names)
    measured["calibration_error_without_temperature"] = _error(classifier.probabilities(x[1::2]), y[1::2])
    router = Router(names, warm, anchors, reach, measured, router.encoder_sha256)
    router.write(run / ROUTER)
    return router


def _features(model: Model, stores: list[Store], split: str, most: int, progress: Callable[[int], None]) -> Floats:
    """Features of structures of one branch, evenly spaced in the split of its datasets."""
    found = []
    for store in stores:
        rows = store.range(split)
        chosen = rows.start + evenly(len(rows), most // len(stores))
        found.append(np.hstack(features(model, store.take(chosen))))
        progress(len(chosen))
    return np.concatenate(found)


def _joined(groups: list[Floats]) -> tuple[Floats, Labels]:
    labels = np.repeat(np.arange(len(groups)), [len(rows) for rows in groups])
    return np.concatenate(groups), labels


def _reach(rows: Floats, anchors: Floats) -> float:
    distances = [nearest_distance(row, anchors) for row in rows]
    return max(float(np.quantile(distances, REACHED)), 1e-6)


def _measured(probabilities: Floats, labels: Labels, names: tuple[str, ...]) -> dict[str, object]:
    right: NDArray[np.bool_] = probabilities.argmax(axis=1) == labels
    return {
        "structures": len(labels),
        "accuracy": float(right.mean()),
        "accuracy_by_branch": {n: float(right[labels == k].mean()) for k, n in enumerate(names) if (labels == k).any()},
        "mean_confidence": float(probabilities.max(axis=1).mean()),
        "calibration_error": _error(probabilities, labels),
    }


def _error(probabilities: Floats, labels: Labels) -> float:
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
