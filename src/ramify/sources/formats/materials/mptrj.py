"""MPtrj: one JSON object `{mp-id: {frame-id: {structure, energies, force, stress, ...}}}` of 11 GB.

Deng et al., Nature Machine Intelligence 5, 1031 (2023), doi:10.1038/s42256-023-00716-3; figshare 23713842.
Frame ids are `<task>-<calculation>-<ionic step>`. Stress is in kBar with VASP's sign.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import MALFORMED_FORCES, MALFORMED_STRUCTURE, merged
from ramify.sources.parsing.json_stream import Item, Text, texts
from ramify.sources.parsing.pymatgen import Frame, charge_of, convert
from ramify.sources.parsing.stated import Stated
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

PART_BYTES = 16 << 20
"""Approximate bytes of JSON in a part."""


class Options(DatasetOptions):
    """Recipe keys of `format: mptrj`."""

    format: Literal["mptrj"] = "mptrj"
    """JSON of MPtrj, plain or compressed (bz2, gz, xz)."""
    energy: Literal["uncorrected", "corrected"] = "uncorrected"
    """Total energy to read: that of VASP, or with the corrections of the Materials Project (per composition, so that
    forces are consistent with both, but GGA and GGA+U are then mixed)."""


def cut(path: Path, options: Options) -> Iterator[tuple[Text, ...]]:
    """Yields unparsed materials in parts of about `PART_BYTES`.

    Raises:
        RamifyError: the file is not of this layout, or is damaged or truncated.
    """
    for number, part in enumerate(texts(path, PART_BYTES)):
        if number == 0:
            _require_layout(path, part[0].parse(path))
        yield part


def read_part(path: Path, options: Options, quarantine: Quarantine, part: tuple[Text, ...]) -> Iterator[Structures]:
    """Yields all frames of some materials; the group is the outer mp-id, whose frames are near-duplicates.

    Raises:
        RamifyError: the file is damaged.
    """
    key = f"{options.energy}_total_energy"
    yield from merged(convert(_frames(path, part, key, Stated(path, options, quarantine), quarantine), quarantine))


def _frames(
    path: Path, part: tuple[Text, ...], energy_key: str, stated: Stated, quarantine: Quarantine
) -> Iterator[Frame]:
    for item in (text.parse(path) for text in part):
        for frame_id, frame in item.value.items():
            origin, row = _place(f"{path.name}/{item.key}", frame_id)
            if not isinstance(frame, dict) or not isinstance(frame.get("structure"), dict):
                quarantine.add(f"{path.name}/{item.key}/{frame_id}", MALFORMED_STRUCTURE, "no structure")
            elif frame.get("force") is None:
                quarantine.add(f"{path.name}/{item.key}/{frame_id}", MALFORMED_FORCES, "null or absent")
            else:
                stated.see(frame, frame_id, charge=charge_of(frame["structure"]))
                yield Frame(
                    structure=frame["structure"],
                    energy=frame.get(energy_key),
                    forces=frame["force"],
                    stress=frame.get("stress"),
                    group=item.key,
                    origin=origin,
                    row=row,
                )
    stated.remark()


def _place(origin: str, frame_id: str) -> tuple[str, int]:
    """Origin and row of a frame: `mp-1-0-7` is row 7 (the ionic step) of `mp-1-0`."""
    task, _, step = frame_id.rpartition("-")
    return (f"{origin}/{task}", int(step)) if task and step.isdecimal() else (f"{origin}/{frame_id}", 0)


def _require_layout(path: Path, item: Item) -> None:
    frame: Any = next(iter(item.value.values()), None)
    if item.index is None and isinstance(frame, dict) and "structure" in frame:
        return
    other = "alexandria" if item.key == "entries" or "steps" in item.value else ""
    raise RamifyError(
        f"{path} is not of format 'mptrj' ({{mp-id: {{frame-id: {{structure, ...}}}}}}): "
        f"under '{item.key}' it holds {sorted(item.value)[:6]}",
        fix=f"set `format: {other}`" if other else "correct `path` or `format`",
    )


FORMAT = Format.in_parts(
    name="mptrj",
    options=Options,
    cut=cut,
    read_part=read_part,
    theory="PBE and PBE+U, VASP PAW, Materials Project settings (MPRelaxSet)",
)
