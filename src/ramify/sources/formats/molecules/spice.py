"""SPICE: one HDF5 group for each molecule, with its conformations.

Eastman et al., Scientific Data 10, 11 (2023), doi:10.1038/s41597-022-01882-6; zenodo 8222043;
github.com/openmm/spice-dataset. A group holds `atomic_numbers` (n,), `conformations` (R, n, 3) bohr, `dft_total_energy`
(R,) Hartree, `dft_total_gradient` (R, n, 3) Hartree/bohr (gradients, not forces), `subset` (1,) and `smiles` (1,).
Molecules may be charged: the total charge is the sum of the formal charges in the SMILES. The spin is not stated.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import h5py
from ase.units import Bohr, Hartree

from ramify.errors import RamifyError, nearest
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.parsing.hdf5 import Conformers, dataset, names_in_parts, open_hdf5
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: spice`."""

    reads_states: ClassVar[bool] = True

    format: Literal["spice"] = "spice"
    """HDF5 file of SPICE."""
    subsets: list[str] | None = None
    """Names of the subsets to read, e.g. `SPICE PubChem Set 1 Single Points Dataset v1.2`; by default all."""


def cut(path: Path, options: Options) -> Iterator[tuple[str, ...]]:
    """Yields names of molecules in parts.

    Raises:
        RamifyError: the file is not of this layout, is damaged, or lacks a selected subset.
    """
    with open_hdf5(path, "spice") as file:
        if options.subsets is not None:
            _require_subsets(file, path, options.subsets)
        yield from names_in_parts(file)


def read_part(path: Path, options: Options, quarantine: Quarantine, names: tuple[str, ...]) -> Iterator[Structures]:
    """Yields all conformations of some molecules; the group is the molecule. Gradients are converted to forces.

    Raises:
        RamifyError: the file is damaged.
    """
    with open_hdf5(path, "spice") as file:
        yield from merged(block for name in names for block in _molecule(file[name], path, options, quarantine))


def _molecule(group: h5py.Group, path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    name, subset = str(group.name).strip("/"), _subset(group)
    if options.subsets is not None and subset not in options.subsets:
        quarantine.add(f"{path.name}/{name}", "of another subset (subsets)", subset, count=len(group["conformations"]))
        return
    yield from Conformers(
        numbers=group["atomic_numbers"][()],
        positions=group["conformations"],
        positions_unit=Bohr,
        energy=dataset(group, "dft_total_energy"),
        energy_unit=Hartree,
        forces=dataset(group, "dft_total_gradient"),
        forces_unit=-Hartree / Bohr,
        group=name,
        origin=f"{path.name}/{name}",
        charge=_charge(group),
    ).blocks(quarantine)


def _subset(group: h5py.Group) -> str:
    """Name of the subset of a molecule; empty if the file states none."""
    return _text(group, "subset")


def _text(group: h5py.Group, key: str) -> str:
    """A text of a molecule; empty if the file has none."""
    found = dataset(group, key)
    if found is None:
        return ""
    value = found[()].reshape(-1)[0] if found.shape else found[()]
    return value.decode() if isinstance(value, bytes) else str(value)


_FORMAL_CHARGE = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")
"""The charge of a bracket atom, `[N+:3]`, `[Ca+2]` or `[O--]` (opensmiles.org, sections 3.1.4 and 3.1.6)."""


def _charge(group: h5py.Group) -> float | None:
    """Total charge in e: the sum of the formal charges in the SMILES; None if the file has no SMILES."""
    smiles = _text(group, "smiles")
    if not smiles:
        return None
    charges = (
        (1 if sign[0] == "+" else -1) * (int(size) if size else len(sign))
        for sign, size in _FORMAL_CHARGE.findall(smiles)
    )
    return float(sum(charges))


def _require_subsets(file: h5py.File, path: Path, wanted: list[str]) -> None:
    has = {_subset(group) for group in file.values()}
    for name in wanted:
        if name not in has:
            raise RamifyError(
                f"{path} has no subset '{name}' (`subsets`){nearest(name, has)}; it has {', '.join(sorted(has))}",
                fix="correct `subsets`",
            )


FORMAT = Format.in_parts(
    name="spice", options=Options, cut=cut, read_part=read_part, theory="ωB97M-D3(BJ)/def2-TZVPPD, Psi4"
)
