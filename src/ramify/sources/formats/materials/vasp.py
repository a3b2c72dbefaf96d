"""Output of VASP: `vasprun.xml` and `OUTCAR`, plain or compressed, read by ASE.

The energy is `free_energy` (TOTEN), whose gradient gives the forces; with smeared occupations, `energy` (extrapolated
to zero smearing) is not consistent with the forces. ASE converts the stress to eV/Å³ with tension positive.
https://www.vasp.at/wiki/index.php/Energies_of_the_electronic_system
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ase import Atoms
from ase.io import iread

from ramify.errors import RamifyError
from ramify.sources.base import Format
from ramify.sources.chunks import chunked
from ramify.sources.labels import AtomsOptions
from ramify.sources.parsing.ase_frames import records
from ramify.sources.parsing.compressed import open_bytes
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

_XML_END, _OUTCAR_END = b"</modeling>", b"General timing and accounting informations"
"""Text at the end of the output of a completed calculation."""


class Options(AtomsOptions):
    """Recipe keys of `format: vasp`."""

    format: Literal["vasp"] = "vasp"
    """`vasprun.xml` or `OUTCAR`, detected from the content."""
    unfinished: Literal["refuse", "read"] = "refuse"
    """`read`: reads the complete ionic steps of a truncated file (from a calculation that was stopped)."""
    energy_key: str = "free_energy"
    """`free_energy`: TOTEN, consistent with the forces; `energy`: extrapolated to zero smearing."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all ionic steps; origins include the folder, because all these files have the same name.

    Raises:
        RamifyError: no such file, not an output of VASP, or truncated.
    """
    origin = f"{path.resolve().parent.name}/{path.name}"
    yield from chunked(records(path, _frames(path, options), options, quarantine, origin), quarantine)


def _frames(path: Path, options: Options) -> Iterator[Atoms]:
    with open_bytes(path) as stream, tempfile.TemporaryDirectory() as folder:
        head = stream.peek(4096)[:4096]  # type: ignore[attr-defined]
        xml = b"<modeling>" in head
        if not xml and b"vasp" not in head[:200].lower():
            raise RamifyError(
                f"{path} is neither vasprun.xml nor OUTCAR: it begins with {head[:40]!r}",
                fix="correct `path` or `format`",
            )
        plain = Path(folder) / ("vasprun.xml" if xml else "OUTCAR")  # ASE requires these names and plain text
        with plain.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        if options.unfinished == "refuse":
            _require_end(path, plain, _XML_END if xml else _OUTCAR_END)
        try:
            yield from iread(str(plain), index=":", format="vasp-xml" if xml else "vasp-out")
        except RamifyError:
            raise
        except Exception as error:  # ASE may raise any exception on an unfinished file
            raise RamifyError(
                f"{path} is truncated or damaged: ASE cannot read it ({type(error).__name__}: {error})",
                fix="leave the file out, or use the other one of vasprun.xml and OUTCAR",
            ) from error


def _require_end(path: Path, plain: Path, mark: bytes) -> None:
    with plain.open("rb") as file:
        file.seek(max(0, plain.stat().st_size - (1 << 16)))
        if mark in file.read():
            return
    raise RamifyError(
        f"{path} is truncated: it has no '{mark.decode()}' at its end",
        fix="copy it again, or, if the calculation was stopped, set `unfinished: read` to read its complete steps",
    )


FORMAT = Format(name="vasp", options=Options, read=read, theory="VASP")
