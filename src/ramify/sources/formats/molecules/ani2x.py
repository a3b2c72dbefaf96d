"""ANI-2x: one HDF5 group for each number of atoms, with the species of every row.

Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020), doi:10.1021/acs.jctc.0c00121; zenodo 10108942. A group holds
`species` (R, n) atomic numbers, `coordinates` (R, n, 3) Å, `energies` (R,) Hartree and `forces` (R, n, 3) Hartree/Å.
Copies in other units exist: see the key `units`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py

from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.parsing.hdf5 import Conformers, dataset, groups, groups_by_atoms, open_hdf5
from ramify.sources.quarantine import Quarantine
from ramify.sources.units import Units
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: ani2x`."""

    format: Literal["ani2x"] = "ani2x"
    """HDF5 with a group for each number of atoms; the older ANI-1 and COMP6 files are `format: ani1`."""
    units: Units = Units(energy="Hartree")
    """Units of the file: by default those of the release, Hartree and Å, forces in Hartree/Å."""


def cut(path: Path, options: Options) -> Iterator[tuple[str, ...]]:
    """Yields names of groups in parts of about `PART_ATOMS` atoms.

    Raises:
        RamifyError: the file is not of this layout or is damaged.
    """
    with open_hdf5(path, "ani2x") as file:
        yield from groups_by_atoms((group.name, group["coordinates"].shape) for group in groups(file))


def read_part(path: Path, options: Options, quarantine: Quarantine, names: tuple[str, ...]) -> Iterator[Structures]:
    """Yields all rows; the group is the composition.

    Raises:
        RamifyError: the file is damaged.
    """
    with open_hdf5(path, "ani2x") as file:
        yield from merged(block for name in names for block in _rows(file[name], path, options.units, quarantine))


def _rows(group: h5py.Group, path: Path, units: Units, quarantine: Quarantine) -> Iterator[Structures]:
    return Conformers(
        numbers=group["species"],
        positions=group["coordinates"],
        positions_unit=units.length_factor,
        energy=dataset(group, "energies"),
        energy_unit=units.energy_factor,
        forces=dataset(group, "forces"),
        forces_unit=units.forces_factor,
        group=None,
        origin=f"{path.name}{group.name}",
        expect_forces=False,
    ).blocks(quarantine)


FORMAT = Format.in_parts(
    name="ani2x", options=Options, cut=cut, read_part=read_part, theory="ωB97X/6-31G*, Gaussian 09"
)
