"""Labels of structures: one table that defines columns, loss terms, errors, tables and reports.

A further label with one number per structure (a band gap, the norm of a dipole) needs one row in this table, added by
`register`, and one head in `ramify.model.heads`; see `docs/extending.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label.

    Attributes:
        name: name of the column in `Structures` and stores, and prefix of error names (`energy_mae`).
        title: name of the label in tables and figures of errors.
        unit: unit of the column.
        error_unit: unit of errors.
        per_atom: a row is an atom, else a structure.
        shape: shape of one row, () for one number. Errors are averaged over components with equal weights.
        extensive: rows are totals of a structure; errors are per atom.
        symmetric: a row is a symmetric matrix.
        trivial: the trivial predictor: `references` predicts one energy per element, `zero` zeros, `mean` the mean of
            the training split.
        floor: in `error_unit`. A smaller error of the trivial predictor is rounding: errors are then not reported
            relative to it.
        symbol: abbreviation in the log lines of a training; the name if empty.
        weight: default weight of its error in the loss, see `ObjectiveOptions.labels`.
    """

    name: str
    title: str
    unit: str
    error_unit: str
    per_atom: bool = False
    shape: tuple[int, ...] = ()
    extensive: bool = False
    symmetric: bool = False
    trivial: Literal["references", "zero", "mean"] = "mean"
    floor: float = 0.0
    symbol: str = ""
    weight: float = 1.0

    @property
    def components(self) -> str:
        """Description of the quantities over which errors are averaged."""
        return self.title if not self.shape else f"{self.title} (per component)"

    @property
    def error_text(self) -> str:
        """Unit and description of errors, as written to `evaluation.json`."""
        if self.trivial == "references":
            return f"{self.error_unit} after the dataset's reference energies"
        return f"{self.error_unit} per component" if self.shape else self.error_unit


ENERGY = Label(
    name="energy",
    title="energy per atom",
    unit="eV",
    error_unit="eV/atom",
    extensive=True,
    trivial="references",
    floor=1e-6,
    symbol="E",
)
FORCES = Label(
    name="forces",
    title="forces",
    unit="eV/Å",
    error_unit="eV/Å",
    per_atom=True,
    shape=(3,),
    trivial="zero",
    floor=1e-6,
    symbol="F",
    weight=10.0,
)
STRESS = Label(
    name="stress",
    title="stress",
    unit="eV/Å³",
    error_unit="eV/Å³",
    shape=(3, 3),
    symmetric=True,
    trivial="zero",
    floor=1e-8,
    symbol="S",
    weight=0.0,
)
"""Floors: a thousandth of the best convergence of density functional theory (1 meV/atom, 1 meV/Å, 0.01 kBar)."""

LABELS: dict[str, Label] = {label.name: label for label in (ENERGY, FORCES, STRESS)}
"""All labels, in the order of tables. Every structure has an energy."""

BUILT_IN = tuple(LABELS)
RESERVED = (
    *("n_atoms", "numbers", "positions", "cell", "pbc", "charge", "spin", "split", "group", "origin", "row"),
    *("volume", "linear"),
)
"""Names of columns that are not labels."""


def register(label: Label) -> None:
    """Adds a label to the table; registering the same label again has no effect.

    Raises:
        ValueError: the name is taken or not valid, or the label is not one number per structure.
    """
    if LABELS.get(label.name) == label:
        return
    if label.name in LABELS or label.name in RESERVED:
        raise ValueError(f"label '{label.name}': the name is taken; choose another")
    if not label.name.isidentifier() or not label.name.islower():
        raise ValueError(f"label '{label.name}': a name has small letters, digits and underscores only")
    if label.per_atom or label.shape or label.trivial == "references":
        raise ValueError(
            f"label '{label.name}': only labels with one number per structure can be registered; labels of atoms or "
            "with components need their own column, head and loss term"
        )
    LABELS[label.name] = label


def further() -> tuple[str, ...]:
    """Names of the registered labels, i.e. all but energy, forces and stress."""
    return tuple(name for name in LABELS if name not in BUILT_IN)


def measurable(name: str, trivial: float | None) -> bool:
    """Returns whether errors can be given relative to the trivial predictor, whose error must exceed rounding."""
    return trivial is not None and trivial > LABELS[name].floor


def mae(name: str) -> str:
    """Name of the mean absolute error of a label in files: `energy_mae`."""
    return f"{name}_mae"


def rmse(name: str) -> str:
    """Name of the root mean square error of a label in files: `energy_rmse`."""
    return f"{name}_rmse"


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sorts names of labels by the order of the table."""
    return tuple(name for name in LABELS if name in names)
