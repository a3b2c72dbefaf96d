"""Helpers of the tests of the readers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ramify
from ramify.errors import RamifyError
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

Read = Callable[..., tuple[Structures, Quarantine]]


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of the embedded corpora."""
    return Path(ramify.__file__).parent / "minicorpora"


@pytest.fixture(scope="session")
def read() -> Read:
    """`read(format, path, **recipe_keys)`: everything the reader yields, in one piece, and its quarantine."""

    def read_all(name: str, path: Path, **keys: Any) -> tuple[Structures, Quarantine]:
        found, quarantine = formats()[name], Quarantine()
        options = found.options.model_validate({"format": name, "path": str(path), **keys})
        return Structures.concatenate(found.read(path, options, quarantine)), quarantine

    return read_all


@pytest.fixture(scope="session")
def reads_or_says_why(read: Read) -> Callable[..., None]:
    """`read`, for a file with a changed byte: numbers may differ, and the only exception is a `RamifyError`."""

    def attempt(name: str, path: Path, **keys: Any) -> None:
        said = "fix: "
        try:
            read(name, path, **keys)
        except RamifyError as error:
            said = str(error)
        assert "fix: " in said

    return attempt


@pytest.fixture(scope="session")
def slope() -> Callable[[Structures], float]:
    """Energy-force slope: dE regressed on -(F_i + F_j)/2 . dx over consecutive frames of one cell and composition.

    Correct labels in consistent units give 1, gradients -1, energies per atom 1/n.
    """

    def measure(structures: Structures, largest: float = 0.35) -> float:
        work, change = [], []
        offsets = structures.offsets
        for i in range(len(structures) - 1):
            first, second = slice(*offsets[i : i + 2]), slice(*offsets[i + 1 : i + 3])
            if not np.array_equal(structures.numbers[first], structures.numbers[second]):
                continue
            dx = structures.positions[second] - structures.positions[first]
            if not np.allclose(structures.cell[i], structures.cell[i + 1]) or np.abs(dx).max() > largest:
                continue
            mean = (structures.forces[first] + structures.forces[second]) / 2
            work.append(-(mean * dx).sum())
            change.append(structures.energy[i + 1] - structures.energy[i])
        assert len(work) >= 20, f"{len(work)} close pairs only"
        return float(np.dot(work, change) / np.dot(work, work))

    return measure


@pytest.fixture(scope="session")
def crystal() -> Callable[..., dict[str, Any]]:
    """Builds a structure in pymatgen's dictionary form, as the public files have it."""

    def build(
        symbols: list[str],
        xyz: list[list[float]],
        matrix: list[list[float]],
        *,
        pbc: list[bool] | None = None,
        properties: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        abc = (np.array(xyz) @ np.linalg.inv(matrix)).tolist()
        sites = [
            {"species": [{"element": s, "occu": 1}], "abc": abc[i], "xyz": list(xyz[i]), "label": s}
            for i, s in enumerate(symbols)
        ]
        for i, site in enumerate(sites):
            site["properties"] = properties[i] if properties else {}
        lattice: dict[str, Any] = {"matrix": matrix}
        if pbc is not None:
            lattice["pbc"] = pbc
        return {"@class": "Structure", "charge": 0.0, "lattice": lattice, "sites": sites}

    return build
