"""MatPES: a JSON list of static calculations, plain or compressed.

Kaplan et al., arXiv:2503.04070 (2025); matpes.ai. A record holds `structure` (pymatgen), `energy` (eV), `forces`
(eV/Å), `stress` (kBar in VASP's sign, six numbers in the order xx yy zz yz xz xy, or 3x3), `matpes_id`, `functional`
and `provenance.original_mp_id`. `cohesive_energy_per_atom`, relative to atoms of the same functional, is not read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import MALFORMED_FORCES, MALFORMED_STRESS, MALFORMED_STRUCTURE, merged
from ramify.sources.parsing.json_stream import Item, items
from ramify.sources.parsing.pymatgen import Frame, charge_of, convert
from ramify.sources.parsing.stated import Stated
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: matpes`."""

    format: Literal["matpes"] = "matpes"
    """JSON of MatPES: `MatPES-PBE-2025.1.json.gz`, `MatPES-R2SCAN-2025.1.json.gz`."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all records; the group is the original material of the Materials Project.

    Raises:
        RamifyError: the file is not of this layout, is damaged, or contains two functionals.
    """
    yield from merged(convert(_frames(path, options, quarantine), quarantine))


def _frames(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Frame]:
    functional, stated = None, Stated(path, options, quarantine)
    for item in items(path):
        record, row = item.value, item.index or 0
        if row == 0:
            _require_layout(path, item)
            functional = record.get("functional")
        if record.get("functional") != functional:
            raise RamifyError(
                f"{path} holds two functionals, {functional} and {record.get('functional')} (record {row})",
                fix="make one dataset per functional: their energies are not comparable",
            )
        stated.see(record, row, charge=charge_of(record.get("structure")))
        stress = _full(record.get("stress"))
        if not isinstance(record.get("structure"), dict):
            quarantine.add(f"{path.name}[{row}]", MALFORMED_STRUCTURE, "no structure")
        elif record.get("forces") is None:
            quarantine.add(f"{path.name}[{row}]", MALFORMED_FORCES, "null or absent")
        elif stress is None and record.get("stress") is not None:
            quarantine.add(f"{path.name}[{row}]", MALFORMED_STRESS, "neither six numbers nor three rows")
        else:
            provenance = record.get("provenance") or {}
            yield Frame(
                structure=record["structure"],
                energy=record.get("energy"),
                forces=record["forces"],
                stress=stress,
                group=str(provenance.get("original_mp_id") or record.get("matpes_id") or row),
                origin=path.name,
                row=row,
            )
    stated.remark()


def _full(stress: Any) -> list[Any] | None:
    """Converts a stress in Voigt order (xx yy zz yz xz xy) or 3x3 to three rows; None if it is neither."""
    if not isinstance(stress, list):
        return None
    if len(stress) == 6:
        xx, yy, zz, yz, xz, xy = stress
        return [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    return stress if len(stress) == 3 else None


def _require_layout(path: Path, item: Item) -> None:
    if item.index is not None and not item.key and {"structure", "energy", "matpes_id"} <= item.value.keys():
        return
    raise RamifyError(
        f"{path} is not of format 'matpes' (a list of {{structure, energy, forces, matpes_id, ...}}): its first "
        f"record holds {sorted(item.value)[:6]}",
        fix="correct `path` or `format`",
    )


FORMAT = Format(
    name="matpes", options=Options, read=read, theory="PBE or r2SCAN by file, VASP PAW, MatPESStaticSet, no +U"
)
