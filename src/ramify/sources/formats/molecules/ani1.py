"""ANI-1 and COMP6 in their older layout: HDF5 groups with `species`, `coordinates`, `energies` and, at times, `forces`.

Smith et al., Scientific Data 4, 170193 (2017); Smith et al., J. Chem. Phys. 148, 241733 (2018).
COMP6 stores gradients as forces (isayev/COMP6 issue 2): set `forces_sign: -1`. The reader does not change the sign, so
that the energy-force slope can reveal it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from ase.units import Hartree
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.parsing.hdf5 import Conformers, dataset, groups, open_hdf5
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: ani1`."""

    format: Literal["ani1"] = "ani1"
    """Older layout of ANI-1 and COMP6; the ANI-1x release is `format: ani1x`."""
    high_energy: bool = False
    """Whether to read also `coordinatesHE` and `energiesHE`, the conformers of high energy."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all conformers of all molecules; the group is the path of the molecule in the file.

    Raises:
        RamifyError: the file is not of this layout or is damaged.
    """
    with open_hdf5(path, "ani1") as file:
        yield from merged(
            block for molecule in _molecules(file) for block in _conformers(molecule, path, options, quarantine)
        )


def _molecules(group: h5py.Group) -> Iterator[h5py.Group]:
    if "species" in group:
        yield group
        return
    for child in groups(group):
        yield from _molecules(child)


def _conformers(molecule: h5py.Group, path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    name = str(molecule.name).strip("/")
    numbers = _atomic_numbers(molecule, path)
    for suffix in ("", "HE"):
        positions = dataset(molecule, f"coordinates{suffix}")
        if positions is None:
            continue
        origin = f"{path.name}/{name}" + (f"/coordinates{suffix}" if suffix else "")
        if suffix and not options.high_energy:
            quarantine.add(origin, "high-energy conformer (high_energy: false)", count=len(positions))
            continue
        yield from Conformers(
            numbers=numbers,
            positions=positions,
            energy=dataset(molecule, f"energies{suffix}"),
            forces=dataset(molecule, f"forces{suffix}"),
            energy_unit=Hartree,
            forces_unit=Hartree,  # Hartree/Å
            group=name,
            origin=origin,
            expect_forces=False,
        ).blocks(quarantine)


def _atomic_numbers(molecule: h5py.Group, path: Path) -> NDArray[np.uint8]:
    symbols = [s.decode() if isinstance(s, bytes) else str(s) for s in molecule["species"][()]]
    unknown = sorted({s for s in symbols if s not in NUMBERS})
    if unknown:
        raise RamifyError(
            f"{path}{molecule.name}/species contains {unknown}, which are not element symbols",
            fix="the file is damaged or of another format: download it again, or correct `format`",
        )
    return np.array([NUMBERS[s] for s in symbols], np.uint8)


FORMAT = Format(name="ani1", options=Options, read=read, theory="ωB97X/6-31G*, Gaussian 09")
