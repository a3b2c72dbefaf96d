"""Recipe keys common to all formats, and the interface of a reader (`Format`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ramify.elements import NUMBERS
from ramify.sources.guard import guarded
from ramify.sources.quarantine import Quarantine
from ramify.sources.where import COLUMNS, Condition, is_condition
from ramify.structures import STATES, Structures

CHUNK_ATOMS = 50_000
"""Maximum number of atoms in one chunk of `Structures` (a single structure may be larger): about 4 MB."""

PART_ATOMS = 20 * CHUNK_ATOMS
"""Approximate number of atoms in a part of a large file: 25 MB of columns, about a second of work for a reader."""


class Gates(BaseModel):
    """Limits that a structure must meet to enter the store; others are counted and listed, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_force: float = Field(100.0, gt=0)
    """Maximum norm of the force on one atom, eV/Å."""
    min_distance: float = Field(0.4, ge=0)
    """Minimum distance between two atoms, periodic images included, Å (H2 at equilibrium: 0.74 Å)."""
    energy_outlier: float = Field(60.0, gt=0)
    """Maximum deviation of an energy per atom from those of similar structures: of the same formula and of similar
    volume, closest distance or largest force, whichever gives the smallest deviation. In units of 0.02 eV/atom, or of a
    sixth of the median absolute deviation where energies vary more; 60 units are 1.2 eV/atom, or 10 such deviations."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Whether to drop duplicates (equal elements, positions and cell to 1e-4 Å, energy to 1 meV/atom, forces to 0.05
    eV/Å); the first one with the most labels is kept."""
    conflicting_labels: Literal["lowest", "drop", "keep"] = "lowest"
    """Which structures to keep if equal geometries have different labels (another spin state, charge or setting): the
    one of the lowest energy, none, or all. A model of positions alone cannot fit the labels that `keep` leaves."""


class SplitOptions(BaseModel):
    """Splits: fractions are approximate where groups stay together; `{val: 0, test: 0}` trains on all structures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["group", "block", "structure"] = "group"
    """`group`: all structures of a group are in one split. `block`: each trajectory (the structures of a group in one
    file) is divided into three consecutive blocks, the first for training, the last for test. `structure`: structures
    are assigned individually, which leaves near-duplicates in different splits."""
    val: float = Field(0.1, ge=0, lt=1)
    """Fraction for validation; with 0 there is no validation, and training runs all its steps and keeps the last
    weights."""
    test: float = Field(0.1, ge=0, lt=1)
    """Fraction for test; with 0 there is no test split."""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"split: val {self.val:g} and test {self.test:g} leave nothing to train on")
        return self


class ReferenceFile(BaseModel):
    """Isolated atoms, whose energies are the reference energies of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """Extended XYZ file with one atom of each element; energies under the `energy_key` and in the `units` of the
    dataset if its format has these keys, otherwise `energy` in eV."""


class DatasetOptions(BaseModel):
    """Recipe keys of a dataset, common to all formats."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    names_values: ClassVar[bool] = False
    """Whether files of the format have arbitrary named values per structure."""
    reads_states: ClassVar[bool] = False
    """Whether files of the format may state charge and spin."""

    format: str
    """Name of the file format: one of `ramify.sources.formats()`."""
    path: str | list[str] | dict[Literal["train", "val", "test"], str | list[str]]
    """File or files (`*` allowed); or files by split, which is then used unchanged."""
    theory: str = ""
    """Level of theory, for the manifest and the tables (functional, basis or pseudopotentials, code)."""
    forces_sign: Literal[1, -1] = 1
    """-1 for files that store gradients as forces (COMP6 does)."""
    zeros_are_absent: list[Literal["energy", "forces", "stress"]] = []
    """Labels for which exact zeros mean that nothing was computed, e.g. `[stress]`: these are left out. Otherwise they
    are kept. `ramify prepare` counts both."""
    where: dict[str, Condition] = {}
    """Conditions on the structures of the dataset: `{n_atoms: {max: 200}, elements: [Cu, Ag], charge: 0}`. A condition
    is a value, a list of accepted values, or a range `{min: ..., max: ...}`. All formats support `n_atoms`, `elements`
    (the list must contain all elements of a structure), `group` and `periodic`; those that read charge and spin
    (multiplicity) also `charge` and `spin`; formats with arbitrary named values also these names. Structures that are
    left out are counted."""
    charge: int | None = None
    """Charge in e of the structures whose files state none, e.g. 0 for a dataset of neutral molecules; null: such
    structures have no charge."""
    spin: int | None = Field(None, ge=1)
    """Multiplicity 2S+1 of the structures whose files state none, e.g. 1 for a dataset of closed-shell molecules; null:
    such structures have no spin."""
    every: int = Field(1, ge=1)
    """Reads every n-th structure of a file, starting with the first, of those that meet `where`; of a file of many
    parts (of about a million atoms), every n-th of each part. For trajectories, whose neighbouring frames differ
    little. The others are counted."""
    limit: int | None = Field(None, ge=1)
    """At most so many structures, a random subset of those that pass the gates, the same for the same `split_seed`; the
    others are counted. All files are read nevertheless."""
    split: SplitOptions = SplitOptions()
    """How to split the structures if the files define no split. If they lack only a validation or test split, it is
    taken from the training files."""
    split_seed: int = 0
    """Seed of the hash that orders groups and structures, for `split` and for `limit`."""
    references: ReferenceFile | dict[str, float] | None = None
    """Reference energy of every element: that of its isolated atom, from `{file: isolated_atoms.xyz}`, or values in eV,
    `{H: -13.6, C: -1029.5}`; null fits them by least squares. With isolated atoms, energies of compositions that the
    data do not contain, and atomisation energies, have a meaning."""
    reference_ridge: float = Field(0.0, ge=0)
    """Ridge parameter that regularises the reference energies towards a model of period, group and radius of the
    elements: for datasets with hardly more materials than elements, whose energies ordinary least squares (0) would fit
    exactly, with nothing left to learn. 0.003 is a weak regularisation. Needs energies relative to isolated atoms, as
    plane-wave codes give them."""
    gates: Gates = Gates()
    """Quality limits."""

    @field_validator("references")
    @classmethod
    def _known_elements(cls, value: ReferenceFile | dict[str, float] | None) -> ReferenceFile | dict[str, float] | None:
        for symbol in value if isinstance(value, dict) else ():
            if symbol not in NUMBERS:
                raise ValueError(f"references: {symbol!r} is not an element symbol")
        return value

    @field_validator("where", mode="before")
    @classmethod
    def _conditions(cls, value: Any) -> Any:
        for name, condition in value.items() if isinstance(value, dict) else ():
            if not is_condition(condition):
                raise ValueError(
                    f"where: {name}: {condition!r} is not a condition; accepted: a value, a list of accepted values, "
                    "or a range {min: ..., max: ...}"
                )
        return value

    @field_validator("where")
    @classmethod
    def _known_names(cls, value: dict[str, Condition]) -> dict[str, Condition]:
        accepted = (*COLUMNS, *(STATES if cls.reads_states else ()))
        for name in value if not cls.names_values else ():
            if name not in accepted:
                raise ValueError(f"where: '{name}' is not a value of this format; accepted: {', '.join(accepted)}")
        elements = value.get("elements", [])
        for symbol in elements if isinstance(elements, list) else [elements]:
            if symbol not in NUMBERS:
                raise ValueError(f"where: elements: {symbol!r} is not an element symbol")
        return value

    def by_column(self) -> tuple[str, ...]:
        """The columns among charge and spin to which `where` applies; otherwise it applies to values of the file."""
        return STATES if self.reads_states else ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Attributes:
        name: name in recipes.
        options: recipe keys, a subclass of `DatasetOptions`.
        read: `read(path, options, quarantine)` yields `Structures` in chunks (at most `CHUNK_ATOMS` atoms each) in eV,
            eV/Å, Å, eV/Å³ (tension positive), with the file and the path inside it as `origin`; unusable records are
            added to the quarantine with their reason. Raises `RamifyError` if the file is not of this format.
        theory: default level of theory of files of this format.
        cut: `cut(path, options)` yields the parts of a file in order, as plain data that can be sent to another
            process; for formats with large files. The parts depend only on the file. None: a file is one part.
        read_part: `read_part(path, options, quarantine, part)`: like `read`, for one part.
        companions: `companions(path, options)` returns further files that are read with `path`, so that changes to them
            are detected; None: there are none.
        folder: name of the file that represents a folder of this format; None: the format has no folders.
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
        """Creates a format whose files are always read part by part."""

        def read(path: Path, options: Any, quarantine: Quarantine) -> Iterator[Structures]:
            for part in cut(path, options):
                yield from read_part(path, options, quarantine, part)

        read.__doc__ = read_part.__doc__
        return cls(name=name, options=options, read=read, theory=theory, cut=cut, read_part=read_part)
