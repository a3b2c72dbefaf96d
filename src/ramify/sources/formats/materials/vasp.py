"""Output of VASP: `vasprun.xml` and `OUTCAR`, plain or compressed, read by ASE.

The energy is `free_energy` (TOTEN), whose gradient gives the forces; with smeared occupations, `energy` (extrapolated
to zero smearing) is not consistent with the forces. ASE converts the stress to eV/Å³ with tension positive, and removes
the term of PSTRESS from the energy. The charge, valence electrons minus NELECT, is the named value `charge`.
https://www.vasp.at/wiki/index.php/Energies_of_the_electronic_system
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ase import Atoms
from ase.io import iread
from ase.io.vasp import iread_vasp_out

from ramify.errors import RamifyError
from ramify.sources.base import Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, chunked
from ramify.sources.labels import AtomsOptions
from ramify.sources.parsing.ase_frames import UNCONVERGED, guarded, records, refuse_cp2k, unfinished
from ramify.sources.parsing.compressed import open_bytes
from ramify.sources.parsing.programs.vasp_steps import Facts, facts_of, without_predictions, xml_pieces
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

_TOO_LONG = re.compile(rb"\*{4,}")

WITH_PRESSURE = "stress under PSTRESS, which may contain it, left out"
LEARNED = "predictions of VASP's machine-learned force field in OUTCAR, not read"

_XML_END, _OUTCAR_END = b"</modeling>", b"General timing and accounting informations"
"""Text at the end of the output of a completed calculation."""


class Options(AtomsOptions):
    """Recipe keys of `format: vasp`."""

    format: Literal["vasp"] = "vasp"
    """`vasprun.xml` or `OUTCAR`, detected from the content."""
    unfinished: Literal["refuse", "read"] = "refuse"
    """`read`: reads the complete ionic steps of a truncated file (from a calculation that was stopped)."""
    unconverged: Literal["leave_out", "read"] = "leave_out"
    """Whether to read ionic steps whose electronic steps reached NELM without convergence."""
    stress_sign: Literal[1] = 1
    """Tension is positive: ASE converts the sign of VASP."""
    energy_key: str = "free_energy"
    """`free_energy`: TOTEN, consistent with the forces; `energy`: extrapolated to zero smearing."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all ionic steps; origins include the folder, because all these files have the same name.

    Raises:
        RamifyError: no such file, not an output of VASP, or truncated.
    """
    origin = f"{path.resolve().parent.name}/{path.name}"
    output = _Output(path, options)
    found = records(path, output.frames(), options, quarantine, origin, output.problem)
    yield from chunked(found, quarantine)
    if output.without_stress:
        quarantine.remark(origin, WITH_PRESSURE, count=output.without_stress)
    if output.learned:
        quarantine.remark(origin, LEARNED, count=output.learned)


def frames(path: Path) -> Iterator[Atoms]:
    """Yields the steps, of a stopped calculation the complete ones, with all their named values.

    Raises:
        RamifyError: no such file, not such an output, or damaged.
    """
    return _Output(path, Options(path=str(path), unfinished="read")).frames()


class _Output:
    """One file: its frames, and the facts that decide whether their labels are right.

    Attributes:
        without_stress: number of frames whose stress was left out.
        learned: number of predictions of a machine-learned force field that were left out.
    """

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options, self._facts = path, options, Facts()
        self.without_stress = self.learned = 0

    def frames(self) -> Iterator[Atoms]:
        """Yields the ionic steps with the charge, and without a stress under PSTRESS."""
        with _plain(self._path) as (plain, xml, self.learned):
            if self._options.unfinished == "refuse":
                _require_end(self._path, plain, _XML_END if xml else _OUTCAR_END)
            self._facts = facts_of(plain, xml=xml)
            if self.learned and not self._facts.electronic:
                raise RamifyError(
                    f"{self._path} holds predictions of VASP's machine-learned force field only, {self.learned}",
                    fix="leave it out, or calculate its structures",
                )
            for atoms in self._steps(plain) if xml else guarded(self._path, _outcar_frames(plain)):
                if self._facts.charge is not None:
                    atoms.info["charge"] = self._facts.charge
                if self._facts.pressure and atoms.calc is not None:
                    self.without_stress += atoms.calc.results.pop("stress", None) is not None
                yield atoms

    def _steps(self, plain: Path) -> Iterator[Atoms]:
        """Yields the ionic steps of `vasprun.xml`, piece by piece, because ASE reads a file as a whole."""
        piece = plain.with_name("piece.xml")
        for content, steps in xml_pieces(plain):
            piece.write_bytes(content)
            found = list(guarded(self._path, iread(str(piece), index=":", format="vasp-xml")))
            yield from found
            if len(found) < steps:
                raise RamifyError(
                    f"{self._path} is damaged: ASE reads {len(found)} of {steps} ionic steps of a part of it",
                    fix="copy it again, or leave it out",
                )

    def problem(self, row: int) -> tuple[str, str] | None:
        """Reason and detail for an ionic step whose labels are wrong."""
        if self._options.unconverged == "leave_out" and (why := self._facts.unconverged(row)):
            return UNCONVERGED, f"{why}; `unconverged: read` reads such steps"
        why = self._facts.incomplete(row)
        return (MALFORMED_STRUCTURE, why) if why else None


def _outcar_frames(plain: Path) -> Iterator[Atoms]:
    """The ionic steps one by one: ASE's general functions make a list of them."""
    with plain.open() as file:
        yield from iread_vasp_out(file, index=slice(None))


def _require_end(path: Path, plain: Path, mark: bytes) -> None:
    """Checks that the uncompressed copy of a file has `mark` at its end."""
    with plain.open("rb") as file:
        file.seek(max(0, plain.stat().st_size - (1 << 16)))
        if mark not in file.read():
            raise unfinished(path, mark)


@contextmanager
def _plain(path: Path) -> Iterator[tuple[Path, bool, int]]:
    """A plain copy under the name that ASE requires, whether it is XML, and the number of predictions left out."""
    with open_bytes(path) as stream, tempfile.TemporaryDirectory() as folder:
        head = stream.peek(4096)[:4096]  # type: ignore[attr-defined]
        xml = b"<modeling>" in head
        if not xml and b"vasp" not in head[:200].lower():
            refuse_cp2k(path, head)
            raise RamifyError(
                f"{path} is neither vasprun.xml nor OUTCAR: it begins with {head[:40]!r}",
                fix="correct `path` or `format`",
            )
        plain, learned = Path(folder) / ("vasprun.xml" if xml else "OUTCAR"), 0
        with plain.open("wb") as copy:
            for line in stream if xml else without_predictions(stream):
                if line is None:
                    learned += 1
                else:  # VASP prints asterisks for numbers that are too long: that label alone is not finite
                    copy.write(_TOO_LONG.sub(b" NaN ", line) if b"****" in line else line)
        yield plain, xml, learned


FORMAT = Format(name="vasp", options=Options, read=read, theory="VASP")
