"""What every format shares: the recipe keys of a dataset, and what a reader is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ramify.elements import NUMBERS
from ramify.quarantine import Quarantine
from ramify.sources.conditions import COLUMNS, Condition
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
    """Largest distance of an energy per atom from the median of its composition, in units of that composition's median
    absolute deviation (but at least 0.05 eV/atom per unit: near-equilibrium paths have almost none)."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What becomes of a structure equal to an earlier one (elements, positions and cell to 1e-4 Å)."""


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
    split: dict[Literal["val", "test"], float] = {"val": 0.1, "test": 0.1}
    """Fractions of the groups that go to validation and test where the files bring no split."""
    split_seed: int = 0
    """Enters the hash that orders the groups."""
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
