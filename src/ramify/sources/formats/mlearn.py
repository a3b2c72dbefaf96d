"""mlearn (Zuo et al., J. Phys. Chem. A 124, 731 (2020), doi:10.1021/acs.jpca.9b08723): JSON lists, in two dialects.

- the original `training.json`, `test.json`: pymatgen structure, `outputs.energy` (total, eV), `outputs.forces`;
- the copies in ALIGNN's examples (`id_prop.json`): JARVIS atoms, `total_energy`, which is eV per atom whatever its
  name says (measured: only times the number of atoms does it fit the forces).

The stresses of both stay unread: their unit is not documented, and 62 of ALIGNN's carry those of other frames.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ramify.errors import RamifyError
from ramify.quarantine import Quarantine
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.json_stream import Item, items
from ramify.sources.pymatgen import Frame, convert
from ramify.structures import Structures

_SNAPSHOT = re.compile(r"^Snapshot \d+ of \d+ of ")


class Options(DatasetOptions):
    """Recipe keys of `format: mlearn`."""

    format: Literal["mlearn"] = "mlearn"
    """JSON list of mlearn, original or ALIGNN's copy."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields every record. The group is the trajectory (the description without the snapshot's number), the surface,
    or all strained cells of an element; ALIGNN's copies do not tell: there it is the composition.

    Raises:
        RamifyError: the file is not of this layout, is damaged, or is cut short.
    """
    yield from merged(convert((_frame(path, item) for item in items(path)), quarantine))


def _frame(path: Path, item: Item) -> Frame:
    record = item.value
    if isinstance(outputs := record.get("outputs"), dict) and isinstance(record.get("structure"), dict):
        # strained cells along x, y and z are copies of one another by cubic symmetry: they stay together
        kind = "" if record.get("group") == "Elastic" else _SNAPSHOT.sub("", str(record.get("description", "")))
        return _labelled(
            path,
            item,
            structure=record["structure"],
            energy=outputs.get("energy"),
            forces=outputs.get("forces"),
            group=f"{record.get('element')}/{record.get('group')}/{kind}",
        )
    if isinstance(atoms := record.get("atoms"), dict) and "total_energy" in record:
        symbols, per_atom = atoms["elements"], record["total_energy"]
        counts = (f"{symbol}{symbols.count(symbol)}" for symbol in sorted(set(symbols)))
        return _labelled(
            path,
            item,
            structure=_from_jarvis(atoms),
            energy=None if per_atom is None else per_atom * len(symbols),
            forces=record.get("forces"),
            group="".join(counts),
        )
    raise RamifyError(
        f"{path} is not of format 'mlearn': record {item.index} holds {sorted(record)[:6]}",
        fix="correct `path` or `format`",
    )


def _labelled(path: Path, item: Item, *, structure: Any, energy: Any, forces: Any, group: str) -> Frame:
    row = item.index or 0
    return Frame(structure=structure, energy=energy, forces=forces, stress=None, group=group, origin=path.name, row=row)


def _from_jarvis(atoms: dict[str, Any]) -> dict[str, Any]:
    """JARVIS atoms in pymatgen's form."""
    key = "xyz" if atoms.get("cartesian") else "abc"
    species = [[{"element": symbol, "occu": 1}] for symbol in atoms["elements"]]
    sites = [{"species": s, key: row} for s, row in zip(species, atoms["coords"], strict=True)]
    return {"lattice": {"matrix": atoms["lattice_mat"]}, "sites": sites}


FORMAT = Format(name="mlearn", options=Options, read=read, theory="PBE, VASP PAW")
