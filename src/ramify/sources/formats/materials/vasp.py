"""VASP's own output: `vasprun.xml` and `OUTCAR`, plain or compressed, as ASE reads them.

The energy is `free_energy` (VASP's TOTEN), of which the forces are the derivative; with smeared occupations `energy`,
the extrapolation to zero smearing, is not. ASE turns the stress into eV/Å³ with tension positive.
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
"""What stands at the end of the output of a calculation that went through."""


class Options(AtomsOptions):
    """Recipe keys of `format: vasp`."""

    format: Literal["vasp"] = "vasp"
    """`vasprun.xml` or `OUTCAR`, told apart by what stands in them."""
    unfinished: Literal["refuse", "read"] = "refuse"
    """`read`: of a file that ends too early (the calculation was stopped) the ionic steps that are complete."""
    energy_key: str = "free_energy"
    """`free_energy`: TOTEN, whose derivative the forces are; `energy`: extrapolated to zero smearing."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields every ionic step; origins name the folder of the file too, because all these files have one name.

    Raises:
        RamifyError: no such file, none of VASP's, or one that ends too early.
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
        plain = Path(folder) / ("vasprun.xml" if xml else "OUTCAR")  # ASE takes names and plain text only
        with plain.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        if options.unfinished == "refuse":
            _require_end(path, plain, _XML_END if xml else _OUTCAR_END)
        try:
            yield from iread(str(plain), index=":", format="vasp-xml" if xml else "vasp-out")
        except RamifyError:
            raise
        except Exception as error:  # ASE's readers raise whatever they come upon in an unfinished file
            raise RamifyError(
                f"{path} is truncated or damaged: ASE cannot read it ({type(error).__name__}: {error})",
                fix="leave the file out, or take the other one of vasprun.xml and OUTCAR",
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
