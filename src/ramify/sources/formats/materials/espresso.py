"""Output of Quantum ESPRESSO's pw.x, plain or compressed, read by ASE.

The energy after `!    total energy` (Ry) contains the smearing contribution (-TS), so that the forces (Ry/bohr) are its
derivatives; ASE converts the stress (Ry/bohr³, compression positive) to eV/Å³ with tension positive. Giannozzi et al.,
J. Phys. Condens. Matter 29, 465901 (2017), doi:10.1088/1361-648X/aa8f79;
https://www.quantum-espresso.org/Doc/pw_user_guide/.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ase import Atoms

from ramify.errors import RamifyError
from ramify.sources.base import Format
from ramify.sources.chunks import chunked
from ramify.sources.labels import AtomsOptions
from ramify.sources.parsing.ase_frames import ase_output, records, refuse_cp2k, require_end
from ramify.sources.parsing.compressed import open_bytes
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

START, END = b"Program PWSCF", b"JOB DONE"
"""Text at the beginning, and at the end of the output of a completed calculation."""


class Options(AtomsOptions):
    """Recipe keys of `format: espresso`."""

    format: Literal["espresso"] = "espresso"
    """Standard output of pw.x."""
    unfinished: Literal["refuse", "read"] = "refuse"
    """`read`: reads the steps of a calculation that was stopped."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all steps; origins include the folder, because such files often have the same name.

    Raises:
        RamifyError: no such file, not an output of pw.x, or truncated.
    """
    origin = f"{path.resolve().parent.name}/{path.name}"
    yield from chunked(records(path, _frames(path, options), options, quarantine, origin), quarantine)


def _frames(path: Path, options: Options) -> Iterator[Atoms]:
    with open_bytes(path) as stream:
        head = stream.peek(4096)[:4096]  # type: ignore[attr-defined]
        if START not in head:
            refuse_cp2k(path, head)
            raise RamifyError(
                f"{path} is not an output of pw.x: '{START.decode()}' is not at its beginning, {head[:40]!r}",
                fix="correct `path` or `format`",
            )
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "pw.out"
            with plain.open("wb") as copy:
                shutil.copyfileobj(stream, copy)
            if options.unfinished == "refuse":
                require_end(path, plain, END)
            yield from ase_output(path, plain, "espresso-out")


FORMAT = Format(name="espresso", options=Options, read=read, theory="Quantum ESPRESSO")
