"""mlearn (Zuo et al., J. Phys. Chem. A 124, 731 (2020), doi:10.1021/acs.jpca.9b08723): JSON lists, in two layouts.

- the original `training.json`, `test.json`: pymatgen structure, `outputs.energy` (total, eV), `outputs.forces`;
- the copies in the examples of ALIGNN (`id_prop.json`): JARVIS atoms, `total_energy`, which in those copies is eV per
  atom despite its name; because other copies contain totals, it is determined from the data or set (see `jarvis`).

Stresses are not read: their unit is not documented, and 62 records of ALIGNN contain those of other frames.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import merged
from ramify.sources.formats.materials.jarvis import composition_of, is_jarvis, measured_per_atom, pymatgen_structure
from ramify.sources.parsing.json_stream import Item, items
from ramify.sources.parsing.pymatgen import Frame, charge_of, convert
from ramify.sources.parsing.stated import Stated
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

_SNAPSHOT = re.compile(r"^Snapshot \d+ of \d+ of ")


class Options(DatasetOptions):
    """Recipe keys of `format: mlearn`."""

    format: Literal["mlearn"] = "mlearn"
    """JSON list of mlearn, original or copy of ALIGNN."""
    energy_is_per_atom: bool | None = None
    """For copies of ALIGNN: whether `total_energy` is per atom; by default determined from the data, and required if
    that is ambiguous."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all records. The group is the trajectory (the description without the number of the snapshot), the
    surface, or all strained cells of an element; in copies of ALIGNN, without descriptions, it is the composition.

    Raises:
        RamifyError: the file is not of this layout, or is damaged or truncated.
    """
    yield from merged(convert(_frames(path, options, quarantine), quarantine))


def _frames(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Frame]:
    per_atom, stated = options.energy_is_per_atom, Stated(path, options, quarantine)
    for item in items(path):
        if per_atom is None and is_jarvis(item.value):
            per_atom = measured_per_atom(path)
        structure = item.value.get("structure")
        stated.see(item.value, item.index or 0, per_atom=bool(per_atom), charge=charge_of(structure))
        yield _frame(path, item, bool(per_atom))
    stated.remark()


def _frame(path: Path, item: Item, per_atom: bool) -> Frame:
    record = item.value
    if isinstance(outputs := record.get("outputs"), dict) and isinstance(record.get("structure"), dict):
        # cells strained along x, y and z are equivalent by cubic symmetry: one group
        kind = "" if record.get("group") == "Elastic" else _SNAPSHOT.sub("", str(record.get("description", "")))
        return _labelled(
            path,
            item,
            structure=record["structure"],
            energy=outputs.get("energy"),
            forces=outputs.get("forces"),
            group=f"{record.get('element')}/{record.get('group')}/{kind}",
        )
    if is_jarvis(record):
        symbols, energy = record["atoms"]["elements"], record["total_energy"]
        return _labelled(
            path,
            item,
            structure=pymatgen_structure(record["atoms"]),
            energy=energy * len(symbols) if per_atom and type(energy) in (int, float) else energy,
            forces=record.get("forces"),
            group=composition_of(symbols),
        )
    raise RamifyError(
        f"{path} is not of format 'mlearn': record {item.index} holds {sorted(record)[:6]}",
        fix="correct `path` or `format`",
    )


def _labelled(path: Path, item: Item, *, structure: Any, energy: Any, forces: Any, group: str) -> Frame:
    row = item.index or 0
    return Frame(structure=structure, energy=energy, forces=forces, stress=None, group=group, origin=path.name, row=row)


FORMAT = Format(name="mlearn", options=Options, read=read, theory="PBE, VASP PAW")
