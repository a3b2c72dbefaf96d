"""ANI-1x in its release layout: one HDF5 group per composition, NaN where a level of theory was not computed.

Smith et al., Scientific Data 7, 134 (2020), doi:10.1038/s41597-020-0473-z; file `ani1x-release.h5`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import h5py
from ase.units import Hartree

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.parsing.hdf5 import Conformers, dataset, groups, groups_by_atoms, open_hdf5
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: ani1x`."""

    format: Literal["ani1x"] = "ani1x"
    """Release layout; the older ANI-1 and COMP6 files are `format: ani1`."""
    level: Literal["wb97x_dz", "wb97x_tz"] = "wb97x_dz"
    """Level of theory to read: ωB97X/6-31G* (Gaussian 09) or ωB97X/def2-TZVPP (ORCA). Rows without it are left out."""


def cut(path: Path, options: Options) -> Iterator[tuple[str, ...]]:
    """Yields names of groups in parts of about `PART_ATOMS` atoms.

    Raises:
        RamifyError: the file is not of this layout, is damaged, or has no data at this level.
    """
    with open_hdf5(path, "ani1x") as file:
        _require_level(file, path, options.level)
        yield from groups_by_atoms((group.name, group["coordinates"].shape) for group in groups(file))


def read_part(path: Path, options: Options, quarantine: Quarantine, names: tuple[str, ...]) -> Iterator[Structures]:
    """Yields the rows that have energy and forces at `options.level`; the group is the composition.

    Raises:
        RamifyError: the file is damaged.
    """
    with open_hdf5(path, "ani1x") as file:
        yield from merged(
            block
            for group in (file[name] for name in names)
            for block in Conformers(
                numbers=group["atomic_numbers"][()],
                positions=group["coordinates"],
                energy=dataset(group, f"{options.level}.energy"),
                forces=dataset(group, f"{options.level}.forces"),
                energy_unit=Hartree,
                forces_unit=Hartree,  # Hartree/Å
                group=group.name.strip("/"),
                origin=f"{path.name}{group.name}",
            ).blocks(quarantine)
        )


def _require_level(file: h5py.File, path: Path, level: str) -> None:
    if any(f"{level}.energy" in group and f"{level}.forces" in group for group in groups(file)):
        return
    arrays = {key for group in groups(file) for key in group}
    levels = sorted(key.removesuffix(".forces") for key in arrays if key.endswith(".forces"))
    raise RamifyError(
        f"{path} has no energies and forces at `level: {level}`; levels with forces: {', '.join(levels) or 'none'}",
        fix=f"set `level: {levels[0]}`" if levels else "correct `path`",
    )


FORMAT = Format.in_parts(
    name="ani1x",
    options=Options,
    cut=cut,
    read_part=read_part,
    theory="ωB97X/6-31G*, Gaussian 09 (level wb97x_dz); ωB97X/def2-TZVPP, ORCA (level wb97x_tz)",
)
