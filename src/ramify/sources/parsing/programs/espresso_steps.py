"""Output of pw.x, step by step, with memory bounded by some steps, and facts that ASE does not check.

ASE reads a file as a whole. Here it reads the lines with geometries and results of some steps, after the beginning of
their run. Of the results between two geometries the last are taken: pw.x prints an energy for every `iprint` electronic
steps, and for every inner loop of a hybrid functional, before the final one (`!!` for hybrid functionals).
`electrons.f90`, `output_tau.f90` and `summary.f90` of https://gitlab.com/QEF/q-e contain the formats of the lines.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

PIECE, STEPS = 1 << 20, 50
"""Most bytes and steps that ASE is given at once: its time grows with the square of the steps."""

_MARK = re.compile(
    rb"\s*+(?=[!A-Za-z])(?:(?P<start>Program PWSCF)|(?P<end>JOB DONE)|(?P<cell>CELL_PARAMETERS(?!:))"
    rb"|(?P<positions>ATOMIC_POSITIONS(?!:))|(?P<energy>!!?\s+total energy)"
    rb"|(?P<forces>Forces acting on atoms)|(?P<stress>total   stress)"
    rb"|(?P<moments>Magnetic moment per site)|(?P<scf>End of self-consistent calc|End of band structure calc)"
    rb"|(?P<failed>(?:EXX )?convergence NOT achieved)|(?P<accuracy>estimated scf accuracy)"
    rb"|(?P<magnetization>total magnetization)|(?P<potential>pot\.stat\. contrib|FCP: |total charge of GC-SCF)"
    rb"|(?P<threshold>(?:scf convergence threshold|convergence threshold {5}) ?=)|(?P<electrons>number of electrons)"
    rb"|(?P<atoms>number of atoms/cell)|(?P<types>number of atomic types)|(?P<alat>celldm\(1\))"
    rb"|(?P<axes>crystal axes:)|(?P<species>atomic species   valence)|(?P<sites>site n\..*positions \(alat units\)))"
)
_FLOAT = re.compile(rb"[=<]\s*([-+]?\d+\.\d*(?:[ED][-+]?\d+)?)", re.IGNORECASE)
_INTEGER = re.compile(rb"=\s*(\d+)")
_MOMENT = re.compile(rb"magn\s*[:=]\s*(\S+)")
_TOO_LONG = re.compile(rb"\*{4,}")


@dataclass
class _Block:
    """Rows below a line: those that contain `has`, one after the other, at most `count` of them."""

    head: bytes
    count: int
    has: bytes = b""
    rows: list[bytes] = field(default_factory=list)
    patience: int = 4  # lines before the first row

    def take(self, line: bytes) -> bool:
        """Takes a line if it is one of the rows."""
        taken = self.count > len(self.rows) and self.has in line and bool(line.strip())
        if taken:
            self.rows.append(line)
        return taken

    def open(self) -> bool:
        """Whether further rows may follow, after a line that is none."""
        self.patience -= 1
        return not self.rows and self.patience > 0

    def lines(self) -> list[bytes]:
        """The line and its rows."""
        return [self.head, *self.rows]


@dataclass
class Run:
    """One calculation, from its first line on.

    Attributes:
        head: the lines at its beginning that ASE reads.
        n_atoms, n_types: numbers of atoms and of atomic types.
        electrons: number of valence electrons; None if it is not stated.
        threshold: of the electronic steps, Ry; None if it is not stated.
        species, axes, sites: tables of the valences, lattice vectors and positions at its beginning.
        cell: the latest lattice vectors, if it changes them.
    """

    head: list[bytes]
    n_atoms: int = 0
    n_types: int = 0
    electrons: float | None = None
    threshold: float | None = None
    species: _Block | None = None
    axes: _Block | None = None
    sites: _Block | None = None
    cell: _Block | None = None

    @cached_property
    def charge(self) -> float | None:
        """Charge, e: valence electrons of the neutral atoms less those of the calculation; None if it is not stated."""
        if self.electrons is None or self.species is None or self.sites is None:
            return None
        try:
            valences = {words[0]: float(words[1]) for words in map(bytes.split, self.species.rows)}
            return round(sum(valences[row.split()[1]] for row in self.sites.rows) - self.electrons, 3)
        except (KeyError, ValueError, IndexError):
            return None

    def lines(self) -> list[bytes]:
        """The beginning of the run, without results."""
        blocks = [block.lines() for block in (self.axes, self.sites) if block is not None]
        return [*self.head, *(line for block in blocks for line in block)]


@dataclass
class Step:
    """One geometry and its results.

    Attributes:
        positions, cell: as printed before the results; None for those at the beginning of the run.
        results: the last lines of each kind between this geometry and the next.
        accuracy: of the electronic steps, estimated after the energy, Ry; None if it is not stated.
        failed: the line that states that the electronic steps did not converge; empty if there is none.
        potential: whether the number of electrons follows from a potential, so that the energy is a grand potential.
        magnetization: of the cell, μB; None if it is not printed, or has three components.
    """

    run: Run
    positions: _Block | None = None
    cell: _Block | None = None
    results: dict[str, _Block] = field(default_factory=dict)
    accuracy: float | None = None
    failed: str = ""
    potential: bool = False
    magnetization: float | None = None

    @property
    def has_energy(self) -> bool:
        """Whether an energy is printed with its unit."""
        return b" Ry" in self._energy()

    def unconverged(self) -> str:
        """Reason why the electronic steps did not converge; empty if they did."""
        threshold, hybrid = self.run.threshold, self._energy().startswith(b"!!")
        if self.failed or hybrid or threshold is None or self.accuracy is None:
            return self.failed
        # without `scf_must_converge` pw.x states convergence after the last step; both are printed with few digits
        accuracy = f"estimated scf accuracy {self.accuracy:.2g} Ry, threshold {threshold:.2g} Ry"
        return accuracy if self.accuracy > 2 * threshold else ""

    def incomplete(self) -> str:
        """Description of numbers that the step lacks; empty if it lacks none."""
        blocks = {"lattice vectors": self.cell, "positions": self.positions, **self.results}
        for name, block in blocks.items():
            if block is not None and len(block.rows) < block.count:
                return f"{len(block.rows)} of {block.count} rows of {name}"
        return ""

    def text(self) -> bytes:
        """The lines that ASE reads, without the eigenvalues, with NaN for numbers that are too long for their field."""
        made: list[bytes] = []
        if self.positions is not None:
            made += [*self.cell.lines(), b"\n"] if self.cell is not None else []
            made += self.positions.lines()
        energy = self._energy() if self.has_energy else b"!!   total energy = NaN Ry\n"  # ASE needs one
        made.append(energy.replace(b"!! ", b"!  ", 1))
        whole = {name: block for name, block in self.results.items() if len(block.rows) == block.count}
        for name in ("forces", "stress", "moments"):
            if name in whole:
                head, *rows = whole[name].lines()
                if name == "moments":  # ASE takes the last number, which older versions print for a constraint
                    rows = [(match[1] if (match := _MOMENT.search(row)) else b"NaN") + b"\n" for row in rows]
                made += [head, *([b"\n"] if name == "forces" else []), *rows]
        made.append(b"     End of self-consistent calculation\n\n")
        made.append(b"     Number of k-points >= 100: set verbosity='high' to print the bands.\n\n")
        return b"".join(_TOO_LONG.sub(b" NaN ", line) if b"****" in line else line for line in made)

    def _energy(self) -> bytes:
        return self.results["energy"].head if "energy" in self.results else b""


class Steps:
    """The steps of one output.

    Args:
        lines: its lines.

    Attributes:
        complete: whether the last run ended, after all steps were read.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines, self.complete = lines, False
        self._run = Run([])
        self._step = Step(self._run)
        self._block: _Block | None = None

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps that have results, as ASE counts them."""
        for line in self._lines:
            if not line.endswith(b"\n"):  # a number in it may have been cut
                self.complete |= b"JOB DONE" in line
                break
            if self._block is not None:
                if self._block.take(line):
                    continue
                self._block = self._block if self._block.open() else None
            mark = _MARK.match(line)
            if mark is None:
                continue
            name = str(mark.lastgroup)
            if name in ("start", "positions"):
                if self._step.results:
                    yield self._step
                self._begin(name, line)
            else:
                self._take(name, line)
        if self._step.results:
            yield self._step

    def _begin(self, name: str, line: bytes) -> None:
        """Begins a run or a geometry."""
        if name == "start":
            self._run, self._block, self.complete = Run([line]), None, False
            self._step = Step(self._run)
        else:
            self._block = _Block(line, self._run.n_atoms)
            self._step = Step(self._run, self._block, self._run.cell)

    def _take(self, name: str, line: bytes) -> None:
        """Takes the facts or results that a line states or begins."""
        run, step = self._run, self._step
        if name == "end":
            self.complete = True
        elif name == "cell":
            self._block = run.cell = _Block(line, 3)
        elif name == "energy":
            hybrid = "energy" in step.results and step.results["energy"].head.startswith(b"!!")
            if not hybrid or line.startswith(b"!!"):
                step.results["energy"] = _Block(line, 0)
                step.accuracy = None
        elif name in ("forces", "stress", "moments"):
            rows = {"forces": (run.n_atoms, b"force ="), "stress": (3, b""), "moments": (run.n_atoms, b"magn")}
            self._block = step.results[name] = _Block(line, *rows[name])
        elif name == "scf":
            step.results["scf"] = _Block(line, 0)
        elif name == "failed":
            step.results["scf"] = _Block(line, 0)
            step.failed = line.decode("ascii", "replace").strip()
        elif name == "accuracy" and "energy" in step.results and step.accuracy is None:
            step.accuracy = _number(line)
        elif name == "magnetization":
            step.magnetization = _number(line) if line.count(b".") == 1 else None
        elif name == "potential":
            step.potential = True
        else:
            self._take_head(name, line)

    def _take_head(self, name: str, line: bytes) -> None:
        """Takes a line of the beginning of a run; pw.x prints it again before the final step of a changed cell."""
        run = self._run
        if name == "threshold":
            run.threshold = run.threshold or _number(line)
        elif name == "electrons":
            run.electrons = _number(line)
        elif run.sites is not None:
            return
        elif name in ("atoms", "types", "alat"):
            run.head.append(line)
            count = _INTEGER.search(line)
            if count and name == "atoms":
                run.n_atoms = int(count[1])
            elif count and name == "types":
                run.n_types = int(count[1])
        elif name == "axes":
            self._block = run.axes = _Block(line, 3, b"a(")
        elif name == "species":
            self._block = run.species = _Block(line, run.n_types)
        elif name == "sites":
            self._block = run.sites = _Block(line, run.n_atoms, b"tau(")


def pieces(steps: Iterable[Step]) -> Iterator[tuple[str, list[Step]]]:
    """Yields the text of some steps of one run, which ASE reads as a whole, and the steps."""
    texts, held, size = list[bytes](), list[Step](), 0
    for step in steps:
        if held and (step.run is not held[0].run or size > PIECE or len(held) == STEPS):
            yield _joined(held, texts), held
            texts, held, size = [], [], 0
        texts.append(step.text())
        held.append(step)
        size += len(texts[-1])
    if held:
        yield _joined(held, texts), held


def _joined(steps: list[Step], texts: list[bytes]) -> str:
    return b"".join([*steps[0].run.lines(), b"\n", *texts]).decode("utf-8", "replace")


def _number(line: bytes) -> float | None:
    found = _FLOAT.search(line)
    return float(found[1].upper().replace(b"D", b"E")) if found else None
