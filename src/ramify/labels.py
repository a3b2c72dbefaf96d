"""The labels that a structure can carry: one table from which columns, losses, errors, tables and reports follow.

A further label of one number by structure (a band gap, the norm of a dipole) is one row here, added by `register`, and
one head in `ramify.model.heads`; `docs/extending.md` shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label.

    Attributes:
        name: of the column of `Structures` and of stores, and what errors begin with (`energy_mae`).
        title: what one error is of, in tables and figures.
        unit: of the column.
        error_unit: of errors.
        per_atom: a row is an atom, else a structure.
        shape: of one row, () for one number. Errors are counted by component: every labelled one weighs alike.
        extensive: rows are totals of a structure, which are compared by atom.
        symmetric: a row is a symmetric matrix.
        trivial: what predictor knows nothing: `references` predicts one energy per element, `zero` zeros, `mean` the
            mean of the training split.
        floor: in `error_unit`. Where even the trivial predictor errs by less, its error is rounding: there is nothing
            to learn, and no error is measured against it.
        symbol: what the lines of a training call it; its name where it has none.
        weight: of its error in the loss where the recipe does not say, see `ObjectiveOptions.labels`.
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
        """What is counted when errors are averaged."""
        return self.title if not self.shape else f"{self.title} (per component)"

    @property
    def error_text(self) -> str:
        """Unit of errors and what they are of, as `evaluation.json` says it."""
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
"""Floors: a thousandth of what density functional theory is converged to at best (1 meV/atom, 1 meV/Å, 0.01 kBar)."""

LABELS: dict[str, Label] = {label.name: label for label in (ENERGY, FORCES, STRESS)}
"""All labels, in the order of tables. Energies are what everything else is derived from; every structure has one."""

BUILT_IN = tuple(LABELS)
RESERVED = ("n_atoms", "numbers", "positions", "cell", "pbc", "split", "group", "origin", "row", "volume", "linear")
"""Names of columns that are no labels."""


def register(label: Label) -> None:
    """Adds a row to the table; the same row again changes nothing.

    Raises:
        ValueError: the name is taken or no name of a column, or the label is not one number by structure.
    """
    if LABELS.get(label.name) == label:
        return
    if label.name in LABELS or label.name in RESERVED:
        raise ValueError(f"label '{label.name}': the name is taken; choose another")
    if not label.name.isidentifier() or not label.name.islower():
        raise ValueError(f"label '{label.name}': a name has small letters, digits and underscores only")
    if label.per_atom or label.shape or label.trivial == "references":
        raise ValueError(
            f"label '{label.name}': what can be registered is one number by structure; a label of atoms or with "
            "components needs a column, a head and a rule of its own"
        )
    LABELS[label.name] = label


def further() -> tuple[str, ...]:
    """Names of the registered labels, those beside energy, forces and stress."""
    return tuple(name for name in LABELS if name not in BUILT_IN)


def measurable(name: str, trivial: float | None) -> bool:
    """Whether an error can be measured against that of the trivial predictor: not where that is rounding."""
    return trivial is not None and trivial > LABELS[name].floor


def mae(name: str) -> str:
    """What the mean absolute error of a label is called in files: `energy_mae`."""
    return f"{name}_mae"


def rmse(name: str) -> str:
    """The same of the root mean square error."""
    return f"{name}_rmse"


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Names of labels in the order of the table."""
    return tuple(name for name in LABELS if name in names)
