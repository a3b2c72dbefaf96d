"""`Router`: finds the branch of a model that suits a structure, with a confidence, or abstains.

The file `router.safetensors` next to the model is bound to the encoder by its checksum. It does not affect predictions:
they are always those of the branch that the user names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from ramify.checkpoint.described import described, read_described
from ramify.elements import SYMBOLS
from ramify.errors import RamifyError
from ramify.files import write_whole
from ramify.inference.model import Model
from ramify.inference.saved import ROUTER
from ramify.route.classifier import Classifier, Floats
from ramify.route.features import features
from ramify.structures import Structures
from ramify.untrusted import Name, parsed

FORMAT, VERSION = "ramify-router", 1
CONFIDENT = 0.8
"""Default confidence below which the router abstains."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The result of the router for one structure.

    Attributes:
        branch: the branch that suits it; None if the router abstains.
        confidence: calibrated probability of the most likely branch.
        probabilities: probabilities of all branches of the router.
        novelty: distance from the nearest training structure of the most likely branch, divided by the 99th percentile
            of this distance for its validation structures; above 1 the structure is unlike the training data of the
            branch; None if no branch predicts it.
        why: reason to abstain; empty otherwise.
    """

    branch: str | None
    confidence: float
    probabilities: Mapping[str, float]
    novelty: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Router:
    """A fitted router; see the docstring of the module.

    Attributes:
        branches: the K branches that it chooses from.
        classifier: classifier on composition and encoder features.
        anchors: by branch, (A, F) standardised encoder features of training structures.
        reach: by branch, 99th percentile of the distance from the nearest anchor for its validation structures.
        measured: results on validation data: `accuracy`, `calibration_error`, `structures`, ...
        encoder_sha256: checksum of the encoder that made the features.
    """

    branches: tuple[str, ...]
    classifier: Classifier
    anchors: Mapping[str, Floats]
    reach: Mapping[str, float]
    measured: Mapping[str, Any]
    encoder_sha256: str

    def route(self, model: Model, structures: Structures, confident: float = CONFIDENT) -> list[Choice]:
        """One choice for each structure; structures must have atoms, and no coincident atoms.

        Args:
            model: model with the encoder that the router was fitted with.
            structures: any number.
            confident: abstain below this confidence.
        """
        composition, encoded = features(model, structures)
        probabilities = self.classifier.probabilities(np.hstack([composition, encoded]))
        best = probabilities.argmax(axis=1)
        standard = self.standardised(encoded)
        novelty = np.array([self.novelty(self.branches[b], row) for b, row in zip(best, standard, strict=True)])
        return [
            self._choose(model, _symbols(structures, k), probabilities[k], float(novelty[k]), confident)
            for k in range(len(structures))
        ]

    def standardised(self, encoded: Floats) -> Floats:
        """Encoder features (S, F), standardised with mean and scale of the training data."""
        width = encoded.shape[1]
        return np.asarray((encoded - self.classifier.mean[-width:]) / self.classifier.scale[-width:])

    def novelty(self, branch: str, row: Floats) -> float:
        """Novelty of standardised features, see `Choice`."""
        return nearest_distance(row, self.anchors[branch]) / self.reach[branch]

    def _choose(self, model: Model, symbols: set[str], row: Floats, novelty: float, confident: float) -> Choice:
        order = np.argsort(row)[::-1]
        best, share = self.branches[order[0]], float(row[order[0]])
        why = ""
        if best not in model.branches:
            why = f"most like the data of branch '{best}', which this model does not have"
        elif strange := sorted(symbols - _known(model, best)):
            why = f"most like the data of branch '{best}', whose training data lack {', '.join(strange)}"
        elif novelty > 1:
            why = f"unlike the data of branch '{best}': at {novelty:.1f} times the distance within its validation data"
        elif share < confident:
            why = "not sure: " + ", ".join(f"{self.branches[k]} {row[k]:.2f}" for k in order[:2])
        shares = {name: float(p) for name, p in zip(self.branches, row, strict=True)}
        return Choice(None if why else best, share, shares, novelty, why)

    def write(self, path: Path) -> None:
        """Writes the router atomically."""
        c = self.classifier
        tensors = {"mean": c.mean, "scale": c.scale, "weight": c.weight, "bias": c.bias}
        tensors |= {f"anchors.{name}": points for name, points in self.anchors.items()}
        about = {
            "format": FORMAT,
            "version": VERSION,
            "branches": list(self.branches),
            "temperature": c.temperature,
            "reach": dict(self.reach),
            "measured": dict(self.measured),
            "encoder_sha256": self.encoder_sha256,
        }
        write_whole(path, described(tensors, "router", about))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the router in a file.

        Raises:
            RamifyError: the file is damaged or of a newer version.
        """
        content, tensors = read_described(path, "router", VERSION, _AGAIN)
        about = parsed(_About, content, path, fix=_AGAIN)
        _check_shapes(path, about, tensors)
        weights = {key: tensors[key] for key in ("mean", "scale", "weight", "bias")}
        return cls(
            tuple(about.branches),
            Classifier(**weights, temperature=about.temperature),
            {name: tensors[f"anchors.{name}"] for name in about.branches},
            about.reach,
            about.measured,
            about.encoder_sha256,
        )


class _About(BaseModel):
    """Metadata of the file."""

    format: Literal["ramify-router"]
    version: int
    branches: list[Name] = Field(min_length=1)
    temperature: float = Field(gt=0)
    reach: dict[Name, float]
    measured: dict[str, Any]
    encoder_sha256: str


def _check_shapes(path: Path, about: _About, tensors: Mapping[str, Floats]) -> None:
    """Checks that names and shapes of the tensors are consistent."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    mean, anchors = shapes.get("mean", ()), {f"anchors.{name}" for name in about.branches}
    features, branches = mean[0] if len(mean) == 1 else -1, len(about.branches)
    wanted = {"mean": (features,), "scale": (features,), "weight": (features, branches), "bias": (branches,)}
    wrong = [f"{name} is {shapes.get(name)} instead of {shape}" for name, shape in wanted.items()]
    wrong = [text for text, (name, shape) in zip(wrong, wanted.items(), strict=True) if shapes.get(name) != shape]
    if set(shapes) != {*wanted, *anchors} or set(about.reach) != set(about.branches):
        wrong.append("tensors or reach do not match its branches")
    widths = {shapes[name][1] if len(shapes[name]) == 2 and shapes[name][0] else -1 for name in anchors & set(shapes)}
    if len(widths) != 1 or not 0 < min(widths) <= features:
        wrong.append(f"anchors have {sorted(widths)} features")
    if wrong:
        raise RamifyError(f"{path} is damaged: {wrong[0]}", fix=_AGAIN)


def router_of(model: Model) -> Router:
    """The router of a model.

    Raises:
        RamifyError: there is none, or it was fitted to other weights.
    """
    path = model.saved.router
    if path is None:
        raise RamifyError(f"{model.saved.path} has no {ROUTER}", fix=_AGAIN)
    router = Router.read(path)
    if router.encoder_sha256 != model.saved.encoder_sha256:
        raise RamifyError(f"{path} was fitted to other weights than those of {model.saved.path}", fix=_AGAIN)
    return router


_AGAIN = "fit one where the training data are available: ramify route --fit RUN"


def nearest_distance(row: Floats, points: Floats) -> float:
    """Root mean square difference between the features (F,) and the nearest of (A, F)."""
    return float(np.sqrt(((points - row) ** 2).mean(axis=1).min()))


def _known(model: Model, branch: str) -> set[str]:
    return {symbol for info in model.branches[branch].datasets.values() for symbol in info.elements}


def _symbols(structures: Structures, index: int) -> set[str]:
    first, last = structures.offsets[index : index + 2]
    return {SYMBOLS[z] for z in np.unique(structures.numbers[first:last]).tolist()}
