"""Reference energies stated by the recipe: values, or a file of isolated atoms."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ramify.elements import MAX_NUMBER, NUMBERS, SYMBOLS
from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, ReferenceFile
from ramify.sources.formats.general import extxyz
from ramify.sources.labels import AtomsOptions
from ramify.sources.quarantine import Quarantine
from ramify.store.manifest import Finding, References

Energies = NDArray[np.float64]


def reference_file(options: DatasetOptions, base: Path) -> list[Path]:
    """The file of isolated atoms, if the recipe names one.

    Raises:
        RamifyError: it does not exist.
    """
    if not isinstance(options.references, ReferenceFile):
        return []
    path = base / Path(options.references.file).expanduser()
    if not path.is_file():
        raise RamifyError(f"references.file: {path} does not exist", fix="correct the path, or state values in eV")
    return [path]


def stated_references(dataset: str, options: DatasetOptions, base: Path) -> Energies | None:
    """(119,) eV by atomic number, NaN where nothing is stated; None if the references are to be fitted.

    Raises:
        RamifyError: the file does not exist, cannot be read, or contains an element twice with different energies.
    """
    if options.references is None:
        return None
    values = options.references
    stated = values if isinstance(values, Mapping) else _read(dataset, options, *reference_file(options, base))
    energies = np.full(MAX_NUMBER + 1, np.nan)
    for symbol, energy in stated.items():
        energies[NUMBERS[symbol]] = energy
    return energies


def _read(dataset: str, options: DatasetOptions, path: Path) -> dict[str, float]:
    """Energies of the isolated atoms of an extended XYZ file by symbol, under the keys and in the units of the dataset;
    larger structures of the file are ignored."""
    same = options.model_dump(include={"energy_key", "units"}) if isinstance(options, AtomsOptions) else {}
    keys = {"format": "extxyz", "path": str(path), "forces_key": None, "stress_key": None} | same
    found: dict[str, float] = {}
    for chunk in extxyz.read(path, extxyz.Options.model_validate(keys), Quarantine()):
        for number, energy in zip(
            chunk.numbers[chunk.offsets[:-1]][chunk.n_atoms == 1], chunk.energy[chunk.n_atoms == 1], strict=True
        ):
            symbol = SYMBOLS[number]
            if abs(found.setdefault(symbol, float(energy)) - energy) > 1e-6:
                raise RamifyError(
                    f"datasets.{dataset}.references.file: {path} has two energies of {symbol}, "
                    f"{found[symbol]:.6f} and {energy:.6f} eV",
                    fix="leave one atom of each element in the file, or state values in eV",
                )
    return found


def check_stated(dataset: str, energies: Energies, elements: NDArray[np.integer]) -> None:
    """Checks that an energy is stated for every one of `elements` (E,), atomic numbers.

    Raises:
        RamifyError: an element of the training split is missing.
    """
    if missing := [SYMBOLS[z] for z in elements.tolist() if np.isnan(energies[z])]:
        known = ", ".join(SYMBOLS[z] for z in np.flatnonzero(~np.isnan(energies)).tolist()) or "none"
        raise RamifyError(
            f"datasets.{dataset}.references: no energy of {', '.join(missing)}; stated: {known}",
            fix="state the energy of every element, or leave `references` out to fit them",
        )


def null_space(options: DatasetOptions, references: References) -> list[Finding]:
    """A finding if the compositions of a dataset do not determine its fitted references."""
    elements, rank = len(references.energies), references.rank
    if options.references is not None or options.reference_ridge > 0 or rank >= elements:
        return []
    one = "1 composition does" if rank == 1 else f"{rank} independent compositions do"
    return [
        Finding(
            text=f"{one} not determine the reference energies of {elements} elements: "
            "energies of other compositions, and atomisation energies, have no meaning",
            fix="references: {file: isolated_atoms.xyz} or {SYMBOL: eV, ...}",
        )
    ]
