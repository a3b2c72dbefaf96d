"""Output of Quantum ESPRESSO's pw.x, plain or compressed, read by ASE in pieces of some steps.

The energy after `!    total energy` (Ry; `!!` for hybrid functionals) contains the smearing contribution (-TS), so that
the forces (Ry/bohr) are its derivatives; ASE converts the stress (Ry/bohr³, compression positive) to eV/Å³ with tension
positive. The charge, valence electrons of the atoms minus those of the calculation, is the named value `charge`, the
total magnetization (μB) is `magmom`. Giannozzi et al., J. Phys. Condens. Matter 29, 465901 (2017),
doi:10.1088/1361-648X/aa8f79; https://www.quantum-espresso.org/Doc/pw_user_guide/.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ase import Atoms
from ase.io.espresso import read_espresso_out

from ramify.errors import RamifyError
from ramify.sources.base import Format
from ramify.sources.chunks import MALFORMED_STRUCTURE, chunked
from ramify.sources.labels import AtomsOptions
from ramify.sources.parsing.ase_frames import UNCONVERGED, guarded, records, refuse_cp2k, unfinished
from ramify.sources.parsing.compressed import open_bytes
from ramify.sources.parsing.programs.espresso_steps import Step, Steps, pieces
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

START, END = b"Program PWSCF", b"JOB DONE"
"""Text at the beginning, and at the end of the output of a completed calculation."""
CONSTANT_POTENTIAL = "grand potential (FCP, GC-SCF) instead of an energy"


class Options(AtomsOptions):
    """Recipe keys of `format: espresso`."""

    format: Literal["espresso"] = "espresso"
    """Standard output of pw.x."""
    unfinished: Literal["refuse", "read"] = "refuse"
    """`read`: reads the complete steps of a calculation that was stopped."""
    unconverged: Literal["leave_out", "read"] = "leave_out"
    """Whether to read steps whose electronic steps did not converge."""
    stress_sign: Literal[1] = 1
    """Tension is positive: ASE converts the sign of pw.x."""


def read(path: Path, options: Options, quarantine: Quarantine) -> Iterator[Structures]:
    """Yields all steps; origins include the folder, because such files often have the same name.

    Raises:
        RamifyError: no such file, not an output of pw.x, or truncated.
    """
    origin = f"{path.resolve().parent.name}/{path.name}"
    output = _Output(path, options)
    yield from chunked(records(path, output.frames(), options, quarantine, origin, output.problem), quarantine)


def frames(path: Path) -> Iterator[Atoms]:
    """Yields the steps, of a stopped calculation the complete ones, with all their named values.

    Raises:
        RamifyError: no such file, not such an output, or damaged.
    """
    return _Output(path, Options(path=str(path), unfinished="read")).frames()


class _Output:
    """One file: its frames, and whether their labels are right."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options
        self._step: Step | None = None

    def frames(self) -> Iterator[Atoms]:
        """Yields the steps with charge and total magnetization."""
        with open_bytes(self._path) as stream:
            head = stream.peek(4096)[:4096]  # type: ignore[attr-defined]
            if START not in head:
                refuse_cp2k(self._path, head)
                raise RamifyError(
                    f"{self._path} is not an output of pw.x: '{START.decode()}' is not at its beginning, {head[:40]!r}",
                    fix="correct `path` or `format`",
                )
            steps = Steps(stream)
            for text, held in pieces(steps):
                found = list(guarded(self._path, read_espresso_out(io.StringIO(text), index=slice(None))))
                if len(found) != len(held):
                    raise RamifyError(
                        f"{self._path} is damaged: ASE reads {len(found)} of {len(held)} steps of a part of it",
                        fix="copy it again, or leave it out",
                    )
                for atoms, self._step in zip(found, held, strict=True):
                    facts = {"charge": self._step.run.charge, "magmom": self._step.magnetization}
                    atoms.info |= {name: value for name, value in facts.items() if value is not None}
                    if not self._step.has_energy:
                        for name in ("energy", "free_energy"):
                            atoms.calc.results.pop(name)
                    yield atoms
            if self._options.unfinished == "refuse" and not steps.complete:
                raise unfinished(self._path, END)

    def problem(self, row: int) -> tuple[str, str] | None:
        """Reason and detail for the latest step, if its labels are wrong."""
        assert self._step is not None
        if self._step.potential:
            return CONSTANT_POTENTIAL, "the number of electrons follows from a potential"
        if self._options.unconverged == "leave_out" and (why := self._step.unconverged()):
            return UNCONVERGED, f"{why}; `unconverged: read` reads such steps"
        why = self._step.incomplete()
        return (MALFORMED_STRUCTURE, why) if why else None


FORMAT = Format(name="espresso", options=Options, read=read, theory="Quantum ESPRESSO")
