"""OC20 S2EF: extended XYZ `N.extxyz.xz` with `N.txt.xz`, which has a line for each frame.

Chanussot et al., ACS Catal. 11, 6059 (2021), doi:10.1021/acscatal.0c04525; fair-chem.github.io. A line of the text is
`system id, frame, reference energy`; the adsorption energy is the energy of the frame minus the reference. eV, eV/Å.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from ramify.errors import RamifyError
from ramify.sources.base import DatasetOptions, Format
from ramify.sources.chunks import (
    MALFORMED_ENERGY,
    MALFORMED_FORCES,
    NOT_COMPUTED,
    Record,
    UnusableError,
    as_floats,
    check_numbers,
    chunked,
)
from ramify.sources.formats.general.extxyz import frame_texts
from ramify.sources.parsing.compressed import open_text
from ramify.sources.parsing.stated import Stated
from ramify.sources.parsing.xyz_frame import XYZFrame, parse_frame
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures


class Options(DatasetOptions):
    """Recipe keys of `format: oc20`."""

    format: Literal["oc20"] = "oc20"
    """`N.extxyz` or `N.extxyz.xz` of S2EF, with `N.txt` or `N.txt.xz` in the same folder: `path:
    s2ef_train_200K/*.extxyz.xz`."""
    energy: Literal["total", "adsorption"] = "total"
    """`total`: the energy of VASP; `adsorption`: minus the reference energy of the slab and the adsorbate."""


class _Line(NamedTuple):
    system: str
    frame: str
    reference: float


def companions(path: Path, options: Options) -> list[Path]:
    """The text file that belongs to a file of frames."""
    return [_beside(path)]


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all frames; the group is the system, whose frames are one relaxation.

    Raises:
        RamifyError: one of the two files is missing or damaged, or their numbers of frames and lines differ.
    """
    yield from chunked(_records(path, options, quarantine), quarantine)


def _records(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Record]:
    beside = None
    lines: list[_Line] = []
    count, stated = 0, Stated(path, options, quarantine)
    for text in frame_texts(path):
        if beside is None:  # errors of the file of frames come first
            beside = _beside(path)
            lines = _lines(beside)
        count += 1
        if count > len(lines):
            continue
        line = lines[text.number]
        try:
            frame = parse_frame(text.lines)
            stated.see(frame.info, text.number)
            yield _record(frame, line, options, path.name, text.number)
        except UnusableError as error:
            quarantine.add(f"{path.name}[{text.number}]", error.reason, f"{line.system} {line.frame}: {error.detail}")
    stated.remark()
    if count != len(lines):
        raise RamifyError(
            f"{path} has {count} frames, but {beside} has {len(lines)} lines",
            fix="compare both with the published files and download them again",
        )


def _record(frame: XYZFrame, line: _Line, options: Options, origin: str, row: int) -> Record:
    check_numbers(frame.numbers)
    if frame.info.get("energy") is None:
        raise UnusableError(NOT_COMPUTED, "no energy")
    energy = as_floats(frame.info["energy"], MALFORMED_ENERGY, "energy")
    if energy.size != 1:
        raise UnusableError(MALFORMED_ENERGY, f"{energy.size} numbers instead of 1")
    forces = frame.arrays.get("forces")
    if forces is None:
        raise UnusableError(NOT_COMPUTED, "no forces")
    return Record(
        numbers=frame.numbers,
        positions=frame.positions,
        energy=float(energy) - (line.reference if options.energy == "adsorption" else 0.0),
        forces=as_floats(forces, MALFORMED_FORCES, "forces"),
        cell=frame.cell,
        pbc=frame.pbc,
        group=line.system,
        origin=origin,
        row=row,
    )


def _beside(path: Path) -> Path:
    stem = path.name.split(".extxyz")[0]
    found = [path.with_name(f"{stem}.txt{ending}") for ending in (".xz", "", ".gz", ".bz2", ".zst")]
    for file in found:
        if file.is_file():
            return file
    raise RamifyError(
        f"{path} has no {found[0].name} or {found[1].name} in its folder, which states the system of each frame",
        fix="unpack the whole archive of S2EF, or read it as `format: extxyz`",
    )


def _lines(path: Path) -> list[_Line]:
    lines = []
    with open_text(path) as file:
        for number, text in enumerate(file, 1):
            parts = text.strip().split(",")
            try:
                if len(parts) != 3 or not parts[0]:
                    raise ValueError("not three values")
                lines.append(_Line(parts[0], parts[1], float(parts[2])))
            except ValueError as error:
                raise RamifyError(
                    f"{path}, line {number}: {text.strip()[:60]!r} is not `system id,frame,reference energy` ({error})",
                    fix="compare it with the published file and download it again",
                ) from error
    return lines


FORMAT = Format(
    name="oc20", options=Options, read=read, companions=companions, theory="RPBE, VASP PAW, Open Catalyst settings"
)
