"""Alexandria, in both published layouts, JSON or JSON.bz2; the layout is detected from the content.

Schmidt et al., Materials Today Physics 48, 101560 (2024), doi:10.1016/j.mtphys.2024.101560; alexandria.icams.rub.de.

- entries: `{"entries": [{structure, energy, data: {mat_id, energy_total, stress, ...}}]}`, relaxed end points with the
  forces in the properties of the sites;
- geometry-optimisation paths: `{agm-id: [{..., steps: [{structure, energy, forces, stress}]}]}`, several runs each.

Stress is in kBar with VASP's sign.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import MALFORMED_FORCES, MALFORMED_STRUCTURE, merged
from ramify.sources.parsing.json_stream import Item, items
from ramify.sources.parsing.pymatgen import Frame, charge_of, convert
from ramify.sources.parsing.stated import Stated
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: alexandria`."""

    format: Literal["alexandria"] = "alexandria"
    """JSON or JSON.bz2 of Alexandria: entries or geometry-optimisation paths."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all entries or all steps; the group is `data.parent_id` if present, else `mat_id`, or the agm-id of paths.

    Raises:
        RamifyError: the file is not of this layout, or is damaged or truncated.
    """
    yield from merged(convert(_frames(path, options, quarantine), quarantine))


def _frames(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Frame]:
    stated = Stated(path, options, quarantine)
    for number, item in enumerate(items(path)):
        stated.see(item.value, f"{item.key}[{item.index}]", charge=charge_of(item.value.get("structure")))
        if item.index is not None and item.key == "entries" and "structure" in item.value:
            yield from _entry(path, item, quarantine)
        elif item.index is not None and isinstance(item.value.get("steps"), list):
            yield from _run(path, item, quarantine)
        elif number == 0:
            raise _other_layout(path, item)
        else:
            quarantine.add(f"{path.name}/{item.key}[{item.index}]", MALFORMED_STRUCTURE, "no structure and no steps")
    stated.remark()


def _entry(path: Path, item: Item, quarantine: Quarantine) -> Iterator[Frame]:
    entry, row = item.value, item.index or 0
    data, structure = entry.get("data") or {}, entry["structure"]
    record = f"{path.name}/entries[{row}]"
    material = data.get("mat_id") or entry.get("entry_id")
    if not isinstance(structure, dict) or not material:
        quarantine.add(record, MALFORMED_STRUCTURE, "no structure or no mat_id")
        return
    properties = [site.get("properties") or {} for site in structure.get("sites") or ()]
    with_forces = sum("forces" in p for p in properties)
    if 0 < with_forces < len(properties):
        quarantine.add(record, MALFORMED_FORCES, f"forces on {with_forces} of {len(properties)} sites")
        return
    energy = data.get("energy_total")
    yield Frame(
        structure=structure,
        energy=entry.get("energy") if energy is None else energy,
        forces=[p["forces"] for p in properties] if with_forces else None,
        stress=data.get("stress"),
        group=str(data.get("parent_id") or material),
        origin=f"{path.name}/entries",
        row=row,
    )


def _run(path: Path, item: Item, quarantine: Quarantine) -> Iterator[Frame]:
    origin = f"{path.name}/{item.key}/run{item.index}"
    steps: Sequence[Any] = item.value["steps"]
    for row, step in enumerate(steps):
        if not isinstance(step, dict) or not isinstance(step.get("structure"), dict):
            quarantine.add(f"{origin}[{row}]", MALFORMED_STRUCTURE, "no structure")
        elif "forces" in step and step["forces"] is None:
            quarantine.add(f"{origin}[{row}]", MALFORMED_FORCES, "null")
        else:
            yield Frame(
                structure=step["structure"],
                energy=step.get("energy"),
                forces=step.get("forces"),
                stress=step.get("stress"),
                group=item.key,
                origin=origin,
                row=row,
            )


def _other_layout(path: Path, item: Item) -> RamifyError:
    frame: Any = next(iter(item.value.values()), None)
    other = "mptrj" if item.index is None and isinstance(frame, dict) and "structure" in frame else ""
    return RamifyError(
        f"{path} is not of format 'alexandria' (entries, or runs with steps): under '{item.key}' it holds "
        f"{sorted(item.value)[:6]}",
        fix=f"set `format: {other}`" if other else "correct `path` or `format`",
    )


FORMAT = Format(
    name="alexandria",
    options=Options,
    read=read,
    theory="PBE, PBEsol or SCAN by release (+U), VASP PAW, Alexandria settings",
)
