"""What a trained branch knows: the datasets it read, their elements, reference energies and levels of theory."""

import math
from collections.abc import Iterable, Mapping
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
from ramify.untrusted import Element, Name, parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What a model keeps of a dataset it was trained on.

    Attributes:
        name: of the dataset.
        theory: level of theory, empty where nobody stated it.
        references: eV by element symbol, of every element in the training split.
        rank: independent compositions the references were fitted on.
        spread: of its labels, the units the branch works in.
        structures, atoms: in the training split.
        min_distance: Å, the closest two atoms in the dataset; None where every structure is one isolated atom.
        manifest_sha256: checksum of what its manifest says (`Manifest.sha256`).
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

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the elements that training saw, by atomic number."""
        return tuple(sorted(self.references, key=NUMBERS.__getitem__))

    def reference_table(self) -> NDArray[np.float64]:
        """(119,) eV by atomic number, NaN for elements that training did not see."""
        table = np.full(MAX_NUMBER + 1, np.nan)
        for symbol, energy in self.references.items():
            table[NUMBERS[symbol]] = energy
        return table

    @classmethod
    def of_manifest(cls, name: str, manifest: Manifest) -> Self:
        """From a store's manifest."""
        train = manifest.splits["train"]
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
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"spread": self.spread.to_dict()}

    @classmethod
    def from_dict(cls, name: str, content: Mapping[str, Any], file: Path) -> Self:
        """From `to_dict`, of dataset `name` in `file`.

        Raises:
            RamifyError: it is damaged.
        """
        kept = parsed(_Kept, dict(content), file).model_dump()
        if kept["name"] != name:
            raise RamifyError(f"{file} is damaged at '{name}': it says it is '{kept['name']}'")
        return cls(**{**kept, "spread": LabelSpread.from_dict(kept["spread"])})


class _Spread(BaseModel):
    """`LabelSpread` as plain data."""

    model_config = ConfigDict(extra="forbid")
    energy: float
    forces: float | None
    structures: int = Field(ge=0)
    labels: dict[str, dict[str, float]] = {}


class _Kept(BaseModel):
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


@dataclass(frozen=True, slots=True)
class BranchInfo:
    """One branch.

    Attributes:
        name: of the branch.
        datasets: those it was trained on, by name.
        forces: `direct`, `conservative` (-dE/dx, with stress), or None where no dataset of the branch has forces.
    """

    name: str
    datasets: Mapping[str, DatasetInfo]
    forces: ForceKind | None

    @property
    def stress(self) -> bool:
        """Whether the branch gives the stress of periodic structures."""
        return self.forces == "conservative"


def choose_branch(branches: Mapping[str, BranchInfo], name: str | None) -> BranchInfo:
    """The branch called `name`; None is enough where there is only one.

    Raises:
        RamifyError: several branches and no name, or a name that none has.
    """
    return branches[_choose("branch", branches, name, "the model")]


def choose_dataset(branch: BranchInfo, name: str | None) -> DatasetInfo:
    """The dataset on whose scale total energies are given; None is enough where the branch has only one scale: it read
    one dataset, or went on with others on the scale of the first. Of these, the one with the closest atoms counts.

    Raises:
        RamifyError: several scales and no name, or a name that none has.
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
