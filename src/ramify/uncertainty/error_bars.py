"""`ErrorBars`: the calibrated error bars of a model, `uncertainty.safetensors` of a run or an export.

The file is bound to the weights of the model by their checksums. It affects no energy and no force.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from torch import Tensor

from ramify.batches.batch import Batch
from ramify.batches.transfer import host_array
from ramify.checkpoint.described import described, read_described
from ramify.elements import MAX_NUMBER, SYMBOLS
from ramify.errors import RamifyError
from ramify.files import write_whole
from ramify.model.multibranch import MultiBranch
from ramify.model.parts import ENCODER, part_of_branch
from ramify.structures import Structures
from ramify.uncertainty.last_layer import (
    conservative_force_std,
    direct_force_std,
    energy_features,
    energy_std,
    force_features,
    whitening,
)
from ramify.untrusted import Name, parsed

FILE = "uncertainty.safetensors"
FORMAT, VERSION = "ramify-uncertainty", 1
_AGAIN = "calibrate again where the training data are available: ramify calibrate RUN"

Floats = NDArray[np.float64]


class Scale(BaseModel):
    """Calibration of one dataset: standard deviations s for α = 1 become α sqrt(s² + t²)."""

    floor: float = Field(gt=0)
    """t."""
    all: float = Field(gt=0)
    """Of structures with other sets of elements; fitted to all validation structures."""
    rows: int
    """Validation structures (energies) or atoms (forces)."""
    by_elements: dict[str, float] = {}
    """By set of elements, `C H O`, where there are enough validation structures."""

    def apply(self, raw: Floats, elements: Sequence[str]) -> Floats:
        """Calibrated standard deviations, from those for α = 1 (n,) or (n, 3) and the elements of n structures."""
        factors = np.array([self.by_elements.get(name, self.all) for name in elements])
        return np.asarray(np.hypot(raw, self.floor) * factors.reshape(-1, *[1] * (raw.ndim - 1)))


class DatasetScales(BaseModel):
    """Calibration of one dataset."""

    energy: Scale
    forces: Scale | None = None
    """None where the branch predicts no forces, or no force was labelled."""


class BranchFacts(BaseModel):
    """Metadata of one branch."""

    ridge: float = Field(gt=0)
    """ς² of the energies."""
    structures: int
    """Training structures of the covariance."""
    datasets: dict[Name, DatasetScales]


@dataclass(frozen=True)
class BranchBars:
    """The error bars of one branch.

    Attributes:
        facts: regularisation and calibration.
        tensors: float64; `covariance` (D, D) and `directions` (D, K) of the energies (`ramify.uncertainty.last_layer`);
            with direct forces also `hidden` (H, H) and `vectors` (C, C), both with their regularisation.
    """

    facts: BranchFacts
    tensors: Mapping[str, Floats]

    @cached_property
    def white(self) -> dict[str, Tensor]:
        """W of each covariance."""
        ridges = {"covariance": self.facts.ridge, "hidden": 0.0, "vectors": 0.0}
        return {k: whitening(torch.from_numpy(self.tensors[k]), r) for k, r in ridges.items() if k in self.tensors}

    def raw_energy_std(self, network: MultiBranch, branch: str, batch: Batch, scalars: Tensor) -> Floats:
        """(S,) of energies per atom, for α = 1, from the scalars (N, F) of the atoms of a batch."""
        features = energy_features(network.branch(branch), scalars, batch)
        return host_array(energy_std(features, self.white["covariance"].to(features.device)))

    def raw_forces_std(
        self, network: MultiBranch, branch: str, batch: Batch, scalars: Tensor, vectors: Tensor | None
    ) -> Floats:
        """(N, 3) of forces, for α = 1."""
        head = network.branch(branch).force
        if head is None:
            directions = torch.from_numpy(self.tensors["directions"]).to(batch.positions.device)
            return host_array(conservative_force_std(network, branch, batch, directions))
        assert vectors is not None
        h, v = force_features(head, scalars, vectors)
        return host_array(direct_force_std(h, v, *(self.white[k].to(h.device) for k in ("hidden", "vectors"))))

    def standard_deviations(
        self,
        network: MultiBranch,
        names: tuple[str, str],
        structures: Structures,
        batch: Batch,
        features: tuple[Tensor, Tensor | None],
        *,
        forces: bool,
    ) -> tuple[Floats, Floats | None]:
        """Of total energies (S,), eV, and if requested of forces (N, 3), eV/Å, from the features of a batch.

        Args:
            network: the model.
            names: of the branch and of the dataset whose calibration is used.
            structures, batch: the S structures, and the batch that was made of them.
            features: scalars (N, F) and vectors (N, 3, C) of the encoder for `batch`.
            forces: whether standard deviations of forces are computed.
        """
        branch, dataset = names
        scales, sets = self.facts.datasets[dataset], element_sets(structures.numbers, structures.n_atoms)
        raw = self.raw_energy_std(network, branch, batch, features[0])
        of_energy = scales.energy.apply(raw, sets) * structures.n_atoms
        if not forces:
            return of_energy, None
        assert scales.forces is not None, "`Model.predictor` refuses forces without error bars"
        raw = self.raw_forces_std(network, branch, batch, *features)
        return of_energy, scales.forces.apply(raw, np.repeat(sets, structures.n_atoms).tolist())


@dataclass(frozen=True)
class ErrorBars:
    """The content of the file.

    Attributes:
        branches: by name.
        weights: checksums of the parts of the model, `encoder` and `branches.NAME`.
        measured: quality on the test split by dataset and quantity (`ramify.uncertainty.measures.quality`).
    """

    branches: Mapping[str, BranchBars]
    weights: Mapping[str, str]
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, branch: str, dataset: str) -> BranchBars | None:
        """The error bars of a branch; None if there are none for this dataset of the branch."""
        found = self.branches.get(branch)
        return None if found is None or dataset not in found.facts.datasets else found

    def fits(self, weights: Mapping[str, str]) -> bool:
        """Whether the error bars were made for a model whose parts have these checksums; it may have other branches."""
        own = {ENCODER, *map(part_of_branch, self.branches)}
        return all(
            part in self.weights and weights.get(part) == self.weights[part] for part in own & {*weights, ENCODER}
        )

    def only(self, branches: Collection[str]) -> Self:
        """The error bars of some branches."""
        kept = {name: bars for name, bars in self.branches.items() if name in branches}
        datasets = {dataset for bars in kept.values() for dataset in bars.facts.datasets}
        return replace(self, branches=kept, measured={d: m for d, m in self.measured.items() if d in datasets})

    def content(self) -> bytes:
        """The bytes of the file."""
        tensors = {f"{key}.{name}": t for name, bars in self.branches.items() for key, t in bars.tensors.items()}
        about = {
            "format": FORMAT,
            "version": VERSION,
            "branches": {name: bars.facts.model_dump() for name, bars in self.branches.items()},
            "weights": dict(self.weights),
            "measured": {dataset: dict(found) for dataset, found in self.measured.items()},
        }
        return described(tensors, "uncertainty", about)

    def write(self, path: Path) -> None:
        """Writes the file atomically."""
        write_whole(path, self.content())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            RamifyError: the file is damaged or of a newer version.
        """
        content, tensors = read_described(path, "uncertainty", VERSION, _AGAIN)
        about = parsed(_About, content, path, fix=_AGAIN)
        branches = {}
        for name, facts in about.branches.items():
            own = {key: tensors.pop(f"{key}.{name}") for key in TENSORS if f"{key}.{name}" in tensors}
            _check_shapes(path, name, own)
            branches[name] = BranchBars(facts, own)
        if tensors:
            raise RamifyError(f"{path} is damaged: '{min(tensors):.80}' belongs to no branch", fix=_AGAIN)
        return cls(branches, about.weights, about.measured)


TENSORS = ("covariance", "directions", "hidden", "vectors")


class _About(BaseModel):
    """Metadata of the file."""

    format: Literal["ramify-uncertainty"]
    version: int
    branches: dict[Name, BranchFacts] = Field(min_length=1)
    weights: dict[str, str]
    measured: dict[Name, dict[str, dict[str, Any]]]


def _check_shapes(path: Path, branch: str, tensors: Mapping[str, Floats]) -> None:
    """Checks that shapes and values of the tensors are consistent."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    size = shapes.get("covariance", (0,))[0]
    square = all(len(s) == 2 and (s[0] == s[1] or name == "directions") for name, s in shapes.items())
    whole = set(shapes) in ({"covariance", "directions"}, set(TENSORS))
    if not square or not whole or not size or shapes["directions"][0] != size:
        raise RamifyError(f"{path} is damaged: branch '{branch}' has tensors of shapes {shapes}", fix=_AGAIN)
    if not all(t.dtype == np.float64 and np.isfinite(t).all() for t in tensors.values()):
        raise RamifyError(f"{path} is damaged: branch '{branch}' has values that are not finite float64", fix=_AGAIN)


def no_error_bars(branch: str, what: str = "error bars") -> RamifyError:
    """The error for a branch without error bars, or without those of forces."""
    return RamifyError(
        f"branch '{branch}' has no {what}",
        fix="calibrate them where the training data are available (ramify calibrate RUN), and export the run again; or "
        "give several models, whose spread is taken",
    )


def element_sets(numbers: NDArray[np.integer], n_atoms: NDArray[np.integer]) -> list[str]:
    """The elements of each of S structures, `H C O` by atomic number, from atomic numbers (N,) and sizes (S,)."""
    present = np.zeros((len(n_atoms), MAX_NUMBER + 1), np.bool_)
    present[np.repeat(np.arange(len(n_atoms)), n_atoms), numbers.astype(np.int64)] = True
    kinds, which = np.unique(present, axis=0, return_inverse=True)
    names = [" ".join(SYMBOLS[z] for z in np.flatnonzero(kind)) for kind in kinds]
    return [names[k] for k in which.reshape(-1)]
