"""Facts about a trained branch: its datasets, their elements, reference energies and levels of theory."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ramify.elements import MAX_NUMBER, NUMBERS
from ramify.errors import RamifyError, nearest
from ramify.model.branch import ForceKind
from ramify.model.build import LabelSpread
from ramify.store.manifest import Manifest
from ramify.structures import STATES
from ramify.untrusted import Element, Name, parsed

State = tuple[int | None, int | None]
"""Charge in e and multiplicity; None where not stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """Facts about a training dataset that a model stores.

    Attributes:
        name: name of the dataset.
        theory: level of theory; empty if not stated.
        references: eV by element symbol, for every element of the training split.
        rank: number of independent compositions that the references were fitted to.
        spread: spread of its labels, the units of the branch.
        structures, atoms: numbers in the training split.
        min_distance: Å, smallest distance in the dataset; None if every structure is one isolated atom.
        manifest_sha256: checksum of the content of its manifest (`Manifest.sha256`).
        states: charges (e) and multiplicities in the training split, None where not stated; kept by models that take
            one of them as a condition.
    """

    name: str
    theory: str
    references: Mapping[str, float]
    rank: int
    spread: LabelSpread
    structures: int
    atoms: int
    min_distance: float | None
    manifest_sha256: str
    states: tuple[State, ...] = ()

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the elements in the training data, by atomic number."""
        return tuple(sorted(self.references, key=NUMBERS.__getitem__))

    def reference_table(self) -> NDArray[np.float64]:
        """(119,) eV by atomic number, NaN for elements that are not in the training data."""
        table = np.full(MAX_NUMBER + 1, np.nan)
        for symbol, energy in self.references.items():
            table[NUMBERS[symbol]] = energy
        return table

    @classmethod
    def of_manifest(cls, name: str, manifest: Manifest, conditions: Sequence[str] = ()) -> Self:
        """Made from the manifest of a store, for a model with `conditions`."""
        train = manifest.splits["train"]
        trained = [state for state in manifest.states if state.structures.get("train")]
        return cls(
            name=name,
            theory=manifest.theory,
            references=dict(manifest.references.energies),
            rank=manifest.references.rank,
            spread=LabelSpread.of_manifest(manifest),
            structures=train.structures,
            atoms=train.atoms,
            min_distance=manifest.statistics.min_distance,
            manifest_sha256=manifest.sha256,
            states=tuple((s.charge, s.spin) for s in trained) if set(STATES) & set(conditions) else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        content = asdict(self) | {"spread": self.spread.to_dict(), "states": [list(state) for state in self.states]}
        if not self.states:
            del content["states"]  # then older programs read the model
        return content

    @classmethod
    def from_dict(cls, name: str, content: Mapping[str, Any], file: Path) -> Self:
        """Inverse of `to_dict`, for dataset `name` in `file`.

        Raises:
            RamifyError: the content is damaged.
        """
        kept = parsed(_StoredInfo, dict(content), file).model_dump()
        if kept["name"] != name:
            raise RamifyError(f"{file} is damaged at '{name}': its name there is '{kept['name']}'")
        return cls(**{**kept, "spread": LabelSpread.from_dict(kept["spread"])})


class _Spread(BaseModel):
    """`LabelSpread` as plain data."""

    model_config = ConfigDict(extra="forbid")
    energy: float
    forces: float | None
    structures: int = Field(ge=0)
    labels: dict[str, dict[str, float]] = {}
    energy_mean: float = 0.0


class _StoredInfo(BaseModel):
    """`DatasetInfo` as plain data, in checkpoints and exports."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    theory: str
    references: dict[Element, float]
    rank: int
    spread: _Spread
    structures: int
    atoms: int
    min_distance: float | None
    manifest_sha256: str
    states: tuple[State, ...] = ()


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """Facts about one branch.

    Attributes:
        name: name of the branch.
        datasets: the datasets it was trained on, by name.
        forces: `direct`, `conservative` (-dE/dx, with stress), or None where no dataset of the branch has forces.
        conditions: of the model, without which it predicts nothing (`model.conditions`).
    """

    name: str
    datasets: Mapping[str, DatasetInfo]
    forces: ForceKind | None
    conditions: tuple[str, ...] = ()

    def trained_states(self) -> frozenset[tuple[int | None, ...]]:
        """Values of charge and spin, if they are conditions, in the training data of the branch; empty if not known."""
        taken = [column for column, name in enumerate(STATES) if name in self.conditions]
        return frozenset(tuple(state[c] for c in taken) for info in self.datasets.values() for state in info.states)

    @property
    def stress(self) -> bool:
        """Whether the branch predicts the stress of periodic structures."""
        return self.forces == "conservative"


def choose_branch(branches: Mapping[str, BranchInfo], name: str | None) -> BranchInfo:
    """The branch `name`; None selects the only branch.

    Raises:
        RamifyError: there are several branches and no name is given, or no branch has the name.
    """
    return branches[_choose("branch", branches, name, "the model")]


def choose_dataset(branch: BranchInfo, name: str | None) -> DatasetInfo:
    """The dataset whose energy scale is used for total energies. None is accepted if the branch has only one scale: it
    was trained on one dataset, or fine-tuned on others on the scale of the first. Of these, the dataset with the
    smallest interatomic distance is returned.

    Raises:
        RamifyError: there are several scales and no name is given, or no dataset has the name.
    """
    group = list(branch.datasets.values())
    if name is None and all(info.references == group[0].references for info in group):
        return min(group, key=lambda info: math.inf if info.min_distance is None else info.min_distance)
    return branch.datasets[_choose("dataset", branch.datasets, name, f"branch '{branch.name}'")]


def _choose(kind: str, accepted: Iterable[str], name: str | None, owner: str) -> str:
    names = list(accepted)
    listed = ", ".join(names)
    if name is None:
        if len(names) == 1:
            return names[0]
        why = "" if kind == "branch" else ", each with reference energies of its own"
        raise RamifyError(
            f"{owner} has {len(names)} {kind}{'e' if kind == 'branch' else ''}s{why}: {listed}",
            fix=f"name one: {kind}='{names[0]}' (on the command line --{kind} {names[0]})",
        )
    if name not in names:
        raise RamifyError(f"{owner} has no {kind} '{name}'{nearest(name, names)}", fix=f"name one of: {listed}")
    return name
