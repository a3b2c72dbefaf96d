"""JARVIS and ALIGNN-FF: a JSON list of `{jid, atoms, total_energy, forces, stresses}`.

Choudhary et al., Digital Discovery 2, 346 (2023), doi:10.1039/D2DD00096B; `atoms` is JARVIS's form (`lattice_mat`,
`coords`, `elements`, `cartesian`). Despite its name, `total_energy` is per cell in some files and per atom in others:
this is set in the recipe, or determined from the data.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, merged
from ramify.sources.parsing.json_stream import Item, items
from ramify.sources.parsing.pymatgen import Frame, convert
from ramify.sources.parsing.stated import Stated
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

SAMPLE = 2000
"""Number of records from which to determine whether energies are totals."""

PLAUSIBLE = (0.7, 16.0)
"""eV, range of minus the energy per atom of nearly all solids on the scale of VASP (relative to its reference atoms):
noble gas crystals are below, tungsten and rhenium reach 13."""

UNREAD_STRESS = "stress not read: its unit is not documented (stress: vasp-kbar reads it)"


class Options(DatasetOptions):
    """Recipe keys of `format: jarvis`."""

    format: Literal["jarvis"] = "jarvis"
    """JSON list of JARVIS or ALIGNN-FF (`id_prop.json`)."""
    energy_is_per_atom: bool | None = None
    """Whether `total_energy` is per atom; by default determined from the data, and required if that is ambiguous."""
    stress: Literal["none", "vasp-kbar"] = "none"
    """`vasp-kbar`: `stresses` are in kBar with compression positive, as printed by VASP; the files do not state it."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all records; the group is the material (`jid` up to its first `_`), else the composition.

    Raises:
        RamifyError: the file is not of this layout or is damaged, or it is unclear whether energies are totals.
    """
    per_atom = options.energy_is_per_atom
    if per_atom is None:
        per_atom = measured_per_atom(path)
    yield from merged(convert(_frames(path, options, per_atom, quarantine), quarantine))


def _frames(path: Path, options: Options, per_atom: bool, quarantine: Quarantine) -> Iterator[Frame]:
    unread, stated = 0, Stated(path, options, quarantine)
    for item in items(path):
        record, row = item.value, item.index or 0
        if not is_jarvis(record):
            if row == 0:
                raise _other_layout(path, item)
            quarantine.add(f"{path.name}[{row}]", MALFORMED_STRUCTURE, "no atoms, or no total_energy")
            continue
        stated.see(record, row, per_atom=per_atom)
        unread += record.get("stresses") is not None and options.stress == "none"
        try:
            structure = pymatgen_structure(record["atoms"])
        except (KeyError, TypeError, ValueError) as error:
            quarantine.add(f"{path.name}[{row}]", MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}")
            continue
        symbols, identity = record["atoms"]["elements"], str(record.get("jid") or "")
        energy = record["total_energy"]
        yield Frame(
            structure=structure,
            energy=energy * len(symbols) if per_atom and type(energy) in (int, float) else energy,
            forces=record.get("forces"),
            stress=record.get("stresses") if options.stress == "vasp-kbar" else None,
            group=identity.split("_")[0] or composition_of(symbols),
            origin=path.name,
            row=row,
        )
    stated.remark()
    if unread:
        quarantine.remark(path.name, UNREAD_STRESS, count=unread)


def is_jarvis(record: dict[str, Any]) -> bool:
    """Returns whether a record has this layout."""
    return isinstance(record.get("atoms"), dict) and "total_energy" in record


def measured_per_atom(path: Path) -> bool:
    """Determines from the first `SAMPLE` records whether the energies of a file are per atom.

    If one material occurs in cells of several sizes, a total energy grows with the cell, an energy per atom does not.
    Otherwise, exactly one of the two must be plausible as an energy per atom of VASP.

    Raises:
        RamifyError: both criteria are inconclusive.
    """
    sample = [_energy_and_size(item.value) for item in islice(items(path), SAMPLE)]
    known = [(formula, energy, size) for formula, energy, size in filter(None, sample) if energy]
    if not known:
        return False
    votes = _size_votes(known)
    if len(votes) and abs(np.mean(votes)) > 0.8:
        return bool(np.mean(votes) > 0)
    energies, sizes = np.array([k[1] for k in known]), np.array([k[2] for k in known])
    low, high = PLAUSIBLE
    total, per_atom = (float(((-e > low) & (-e < high)).mean()) for e in (energies / sizes, energies))
    if max(total, per_atom) > 0.95 and min(total, per_atom) < 0.5:
        return per_atom > total
    raise RamifyError(
        f"{path}: it is unclear whether `total_energy` is per cell or per atom: as totals {total:.0%}, as "
        f"energies per atom {per_atom:.0%} of {len(known)} records are plausible (-{high:g} to -{low:g} eV/atom)",
        fix="set `energy_is_per_atom: true` or `energy_is_per_atom: false`",
    )


def _energy_and_size(record: dict[str, Any]) -> tuple[str, float, int] | None:
    """Reduced formula, energy and number of atoms of a record; None if one is missing."""
    if not is_jarvis(record) or not isinstance(record["total_energy"], int | float):
        return None
    symbols = record["atoms"].get("elements")
    if not isinstance(symbols, list) or not symbols:
        return None
    counts = {symbol: symbols.count(symbol) for symbol in sorted(set(map(str, symbols)))}
    unit = int(np.gcd.reduce(list(counts.values())))
    return "".join(f"{s}{n // unit}" for s, n in counts.items()), float(record["total_energy"]), len(symbols)


def _size_votes(known: Sequence[tuple[str, float, int]]) -> list[int]:
    """+1 for each material whose energy does not grow with the cell, -1 for each one whose energy does."""
    votes = []
    by_formula: dict[str, list[tuple[int, float]]] = {}
    for formula, energy, size in known:
        by_formula.setdefault(formula, []).append((size, energy))
    for pairs in by_formula.values():
        (small, first), (large, last) = min(pairs), max(pairs)
        if large >= 1.5 * small and first * last > 0:
            grown = np.log(last / first) / np.log(large / small)  # 1 for totals, 0 per atom
            votes.append(-1 if grown > 0.5 else 1)
    return votes


def composition_of(symbols: Sequence[str]) -> str:
    """Elements and their counts, e.g. `Cu108`."""
    return "".join(f"{symbol}{list(symbols).count(symbol)}" for symbol in sorted(set(symbols)))


def pymatgen_structure(atoms: dict[str, Any]) -> dict[str, Any]:
    """Converts JARVIS atoms to the dictionary form of pymatgen."""
    if (cartesian := atoms.get("cartesian", False)) not in (True, False):  # a text would be true
        raise TypeError(f"cartesian is {cartesian!r}, neither true nor false")
    key = "xyz" if cartesian else "abc"
    species = [[{"element": symbol, "occu": 1}] for symbol in atoms["elements"]]
    sites = [{"species": s, key: row} for s, row in zip(species, atoms["coords"], strict=True)]
    return {"lattice": {"matrix": atoms["lattice_mat"]}, "sites": sites}


def _other_layout(path: Path, item: Item) -> RamifyError:
    return RamifyError(
        f"{path} is not of format 'jarvis' (a list of {{jid, atoms, total_energy, forces}}): its first record holds "
        f"{sorted(item.value)[:6]}",
        fix="correct `path` or `format`",
    )


FORMAT = Format(name="jarvis", options=Options, read=read, theory="OptB88vdW, VASP PAW, JARVIS-DFT settings")
