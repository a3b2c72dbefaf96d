"""What every format shares: the recipe keys of a dataset, and what a reader is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ramify.elements import NUMBERS
from ramify.sources.conditions import COLUMNS, Condition
from ramify.sources.guard import guarded
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

CHUNK_ATOMS = 50_000
"""Atoms that a source gathers into one `Structures` at most (a single larger structure excepted): about 4 MB."""

PART_ATOMS = 20 * CHUNK_ATOMS
"""Atoms, about, of a part of a large file: 25 MB of columns, a second of work or so for whoever reads it."""


class Gates(BaseModel):
    """Limits a structure must keep to enter the store; what fails is counted and quarantined, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_force: float = Field(100.0, gt=0)
    """Largest norm of the force on one atom, eV/Å."""
    min_distance: float = Field(0.4, ge=0)
    """Smallest distance between two atoms, periodic images included, Å (H2 at equilibrium: 0.74 Å)."""
    energy_outlier: float = Field(60.0, gt=0)
    """Largest distance of an energy per atom from those of structures like it: of the same formula and of about the
    same volume, closest distance or largest force, whichever explains it best. In units of 0.02 eV/atom, or of a sixth
    of the median absolute deviation where energies scatter more; 60 are 1.2 eV/atom, or 10 such deviations."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What becomes of a structure equal to another one (elements, positions and cell to 1e-4 Å, energy to 1 meV/atom,
    forces to 0.05 eV/Å); of equal ones the first with the most labels stays."""
    conflicting_labels: Literal["lowest", "drop", "keep"] = "lowest"
    """What stays where equal geometries have different labels (another spin state, charge or setting): the one of the
    lowest energy, none, or all. `keep` leaves labels that no model of positions alone can fit."""


class SplitOptions(BaseModel):
    """Fractions of the structures, as far as what must stay together allows; `{val: 0, test: 0}` trains on all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["group", "block", "structure"] = "group"
    """What never parts: groups; or each trajectory (the structures of a group in one file) is cut into three blocks,
    the first for training, the last for test; or structures are divided singly, which leaves near copies on both
    sides."""
    val: float = Field(0.1, ge=0, lt=1)
    """For validation; 0 does without, and training then ends after its steps and keeps the last weights."""
    test: float = Field(0.1, ge=0, lt=1)
    """For test; 0 does without."""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"split: val {self.val:g} and test {self.test:g} leave nothing to train on")
        return self


class DatasetOptions(BaseModel):
    """Recipe keys of one dataset, whatever its format."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    names_values: ClassVar[bool] = False
    """Whether files of the format name the values of their structures freely."""

    format: str
    """Name of the file format: one of `ramify.sources.formats()`."""
    path: str | list[str] | dict[Literal["train", "val", "test"], str | list[str]]
    """File or files (`*` allowed); or files by split, which are then honoured as they are."""
    theory: str = ""
    """Level of theory, for the manifest and the tables (functional, basis or pseudopotentials, code)."""
    forces_sign: Literal[1, -1] = 1
    """-1 for files that store gradients under the name of forces (COMP6 does)."""
    zeros_are_absent: list[Literal["energy", "forces", "stress"]] = []
    """Labels whose exact zeros mean that nothing was computed, e.g. `[stress]`: they are left out, and counted. Without
    this key they are kept, and `ramify prepare` counts them."""
    where: dict[str, Condition] = {}
    """Which structures of the files belong to this dataset: `{n_atoms: {max: 200}, elements: [Cu, Ag], charge: 0}`. A
    condition is a value, a list of accepted values, or a range `{min: ..., max: ...}`. Every format knows `n_atoms`,
    `elements` (all of a structure's are among those named), `group` and `periodic`; the formats whose files name their
    values freely, each of these names too. What is left out is counted."""
    every: int = Field(1, ge=1)
    """Reads each n-th structure of a file, its first among them, of those that fulfil `where`; of a file of many parts
    (of about a million atoms), each n-th of every part. For trajectories, whose neighbouring frames differ little. The
    others are counted."""
    limit: int | None = Field(None, ge=1)
    """At most so many structures, a random subset of those that pass the gates, the same for the same `split_seed`; the
    others are counted. All files are read nevertheless."""
    split: SplitOptions = SplitOptions()
    """How structures are divided where the files bring no split, or none of validation or test: these are then taken
    out of the training files."""
    split_seed: int = 0
    """Enters the hash that orders groups and structures, for `split` and for `limit`."""
    reference_ridge: float = Field(0.0, ge=0)
    """Pulls the reference energies of a dataset towards what period, group and radius of the elements say: for datasets
    of hardly more materials than elements, whose energies plain least squares (0) would fit exactly, leaving nothing to
    learn. 0.003 is a mild pull. Needs energies relative to isolated atoms, as plane-wave codes give them."""
    gates: Gates = Gates()
    """Quality limits."""

    @field_validator("where")
    @classmethod
    def _known_names(cls, value: dict[str, Condition]) -> dict[str, Condition]:
        for name in value if not cls.names_values else ():
            if name not in COLUMNS:
                raise ValueError(f"'{name}' is not a value that this format has; accepted are {', '.join(COLUMNS)}")
        elements = value.get("elements", [])
        for symbol in elements if isinstance(elements, list) else [elements]:
            if symbol not in NUMBERS:
                raise ValueError(f"elements: {symbol!r} is no element symbol")
        return value


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Attributes:
        name: what recipes call it.
        options: its recipe keys, a subclass of `DatasetOptions`.
        read: `read(path, options, quarantine)` yields `Structures` in chunks (at most `CHUNK_ATOMS` atoms each) in eV,
            eV/Å, Å, eV/Å³ (tension positive), with `origin` naming file and path inside it; records it cannot use go
            to the quarantine with their reason. Raises `RamifyError` when the file is not of this format.
        theory: level of theory that files of this format have unless the recipe says otherwise.
        cut: `cut(path, options)` yields the parts of a file in order, as plain data that may go to another process; for
            formats whose files are large. The parts depend on nothing but the file. None: a file is one part.
        read_part: `read_part(path, options, quarantine, part)`: as `read`, of one part.
        companions: `companions(path, options)`: further files that are read with `path`, so that a change of them is
            noticed; None: there are none.
        folder: name of the file that stands for a folder of this format; None: a folder is no file of this format.
    """

    name: str
    options: type[DatasetOptions]
    read: Callable[[Path, Any, Quarantine], Iterator[Structures]]
    theory: str = ""
    cut: Callable[[Path, Any], Iterator[Any]] | None = None
    read_part: Callable[[Path, Any, Quarantine, Any], Iterator[Structures]] | None = None
    companions: Callable[[Path, Any], list[Path]] | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("read", "cut", "read_part"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, guarded(getattr(self, name), self.name))  # the class is frozen

    @classmethod
    def in_parts(
        cls,
        *,
        name: str,
        options: type[DatasetOptions],
        cut: Callable[[Path, Any], Iterator[Any]],
        read_part: Callable[[Path, Any, Quarantine, Any], Iterator[Structures]],
        theory: str,
    ) -> Self:
        """A format whose files are read part by part, by whoever reads them."""

        def read(path: Path, options: Any, quarantine: Quarantine) -> Iterator[Structures]:
            for part in cut(path, options):
                yield from read_part(path, options, quarantine, part)

        read.__doc__ = read_part.__doc__
        return cls(name=name, options=options, read=read, theory=theory, cut=cut, read_part=read_part)
