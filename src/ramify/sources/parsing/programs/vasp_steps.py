"""VASP's output, step by step: pieces of `vasprun.xml`, and facts that ASE does not check and that decide whether the
labels of an ionic step are right."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_ITERATION = re.compile(r"Iteration\s+\d+\(\s*(\d+)\)")
_CONVERGED = "aborting loop because EDIFF is reached"
_VERSION = re.compile(r"\bvasp\.(\d+)")
_STEP = "FREE ENERGIE OF THE ION-ELECTRON SYSTEM"
_NUMBER = r"\s*=\s*(-?\d+(?:\.\d*)?)"
_KEYS = {name: re.compile(rf"\b{name}{_NUMBER}") for name in ("NELM", "PSTRESS", "NELECT")}

PIECE = 4 << 20
"""Bytes of the ionic steps of a piece of `vasprun.xml`: as a tree, ten times as many."""


def xml_pieces(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields pieces of `vasprun.xml`, of which ASE reads each as a whole, and the number of their complete ionic steps.

    A piece is the beginning of the file with some of its ionic steps; the last one ends as the file does. A file whose
    steps are not on lines of their own is one piece.
    """
    head, body, size, steps, pieces = list[bytes](), list[bytes](), 0, 0, 0
    with path.open("rb") as file:
        for line in file:
            if not body and not pieces and b"<calculation>" not in line:
                head.append(line)
                continue
            body.append(line)
            size += len(line)
            steps += line.strip() == b"</calculation>"
            if size > PIECE and line.strip() == b"</calculation>" and head:
                yield b"".join([*head, *body, b"</modeling>\n"]), steps
                body, size, steps, pieces = [], 0, 0, pieces + 1
    if steps or not pieces:
        yield b"".join(head + body), steps


def without_predictions(lines: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yields the lines of an OUTCAR without the predictions of VASP's machine-learned force field; None for each.

    A prediction is printed before the ionic step that VASP then calculates, or instead of it: stress, if it is asked
    for, positions and forces, energy (https://www.vasp.at/wiki/index.php/ML_LMLFF).
    """
    inside = False
    for line in lines:
        if b"ML" in line:
            inside |= b"ML FORCE on cell" in line or (b"TOTAL-FORCE" in line and b"(ML)" in line)
            if b"ML FREE ENERGIE" in line:
                inside = False
                yield None
                continue
        if not inside:
            yield line


@dataclass
class Facts:
    """Facts of one file.

    Attributes:
        limit: NELM, the maximum number of electronic steps; None if it is not stated.
        pressure: PSTRESS, kB.
        charge: e, valence electrons of the neutral atoms minus NELECT; None if they are not stated.
        electronic: number of electronic steps of each ionic step; 0 where the file states that they converged.
        rows: of each ionic step, the fewest rows of its positions and forces; None where this is not checked.
        n_atoms: number of atoms.
    """

    limit: int | None = None
    pressure: float = 0.0
    charge: float | None = None
    electronic: list[int] = field(default_factory=list)
    rows: list[int | None] = field(default_factory=list)
    n_atoms: int = 0

    def unconverged(self, step: int) -> str:
        """Reason why the electronic steps of an ionic step did not converge; empty if they did."""
        if self.limit is None or step >= len(self.electronic) or self.electronic[step] < self.limit:
            return ""
        return f"{self.electronic[step]} electronic steps, NELM is {self.limit}"

    def incomplete(self, step: int) -> str:
        """Description of rows that an ionic step lacks; empty if it lacks none."""
        rows = self.rows[step] if step < len(self.rows) else None
        return "" if rows is None or rows == self.n_atoms else f"{rows} rows for {self.n_atoms} atoms"


def facts_of(path: Path, *, xml: bool) -> Facts:
    """Reads the facts of `vasprun.xml` or `OUTCAR`; of a truncated file, those before its end."""
    return _of_xml(path) if xml else _of_outcar(path)


def _of_xml(path: Path) -> Facts:
    facts, found, valence = Facts(), dict[str, float](), 0.0
    try:
        for element in _elements(path):
            if element.tag == "atominfo":
                facts.n_atoms = len(element.findall("array[@name='atoms']/set/rc"))
                kinds = element.findall("array[@name='atomtypes']/set/rc")
                known = [(_number(kind[0].text), _number(kind[3].text)) for kind in kinds if len(kind) > 3]
                valence = sum((n or 0.0) * (z or 0.0) for n, z in known)
            elif element.tag == "parameters":
                # the first of a name: NELM occurs again among the parameters of response functions, as 1
                named = {i.get("name"): i.text for i in reversed(list(element.iter("i")))}
                found = {name: number for name in _KEYS if (number := _number(named.get(name))) is not None}
            else:
                facts.electronic.append(_electronic_steps(element))
                blocks = (element.find("structure/varray[@name='positions']"), element.find("varray[@name='forces']"))
                facts.rows.append(min((len(block) for block in blocks if block is not None), default=None))
    except ET.ParseError:  # the reader reports damage
        pass
    return _completed(facts, found, valence)


def _electronic_steps(calculation: ET.Element) -> int:
    """Number of electronic steps of an ionic step of `vasprun.xml`, without those of linear response.

    All terms of the energy are written in the first and the last step of the ground state only.
    """
    steps = calculation.findall("scstep")
    whole = [k for k, step in enumerate(steps, 1) if step.find("energy/i[@name='alphaZ']") is not None]
    return whole[-1] if whole else len(steps)


def _elements(path: Path) -> Iterator[ET.Element]:
    """The elements with facts, in order, without their content after use."""
    for _, element in ET.iterparse(path, events=("end",)):
        if element.tag in ("atominfo", "parameters", "calculation"):
            yield element
            element.clear()
        elif element.tag in ("eigenvalues", "dos", "projected"):  # most of the file
            element.clear()


def _of_outcar(path: Path) -> Facts:
    facts, found = Facts(), dict[str, float]()
    counts, valences, steps = list[float](), list[float](), 0
    with path.open(encoding="utf-8", errors="replace") as file:
        version = _VERSION.search(file.readline())
        stated = version is not None and int(version[1]) >= 6  # version 5 prints the same line if NELM ends the loop
        for line in file:
            if match := _ITERATION.search(line):
                steps = int(match[1])
            elif _CONVERGED in line:
                steps = 0 if stated else steps
            elif _STEP in line:
                facts.electronic.append(steps)
            elif "ions per type =" in line:
                counts = _numbers(line)
            elif line.lstrip().startswith("ZVAL"):
                valences = _numbers(line)
            elif not facts.electronic:
                found = {name: float(m[1]) for name, key in _KEYS.items() if (m := key.search(line))} | found
    known = len(counts) == len(valences)
    valence = sum(n * z for n, z in zip(counts, valences, strict=True)) if known else 0.0
    return _completed(facts, found, valence)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _numbers(line: str) -> list[float]:
    """The numbers behind the equals sign of a line; none if one of them is not a number."""
    found = [_number(word) for word in line.partition("=")[2].split()]
    return [number for number in found if number is not None] if None not in found else []


def _completed(facts: Facts, found: dict[str, float], valence: float) -> Facts:
    facts.limit = int(found["NELM"]) if found.get("NELM") else None
    facts.pressure = found.get("PSTRESS", 0.0)
    if valence and "NELECT" in found:
        facts.charge = round(valence - found["NELECT"], 3)
    return facts
