"""`ramify route FILE`: the branch that suits each structure of a file, and the spread of the branches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from ramify.errors import RamifyError
from ramify.inference.jobs.frames import frames
from ramify.inference.model import Model
from ramify.route.router import CONFIDENT, Choice, router_of
from ramify.route.spread import BranchSpread, spreads
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

CHUNK = 256
"""Number of structures that are processed together."""


@dataclass(frozen=True, slots=True)
class Line:
    """The result for one structure.

    Attributes:
        index: its index in the file.
        formula: its chemical formula.
        choice: choice of the router.
        spread: spread of the branches.
    """

    index: int
    formula: str
    choice: Choice
    spread: BranchSpread

    def text(self) -> str:
        """Text for the terminal."""
        chosen, spread = self.choice, self.spread
        head = f"{self.index:5d} {self.formula}: "
        result = f"{chosen.branch} ({chosen.confidence:.2f})" if chosen.branch else f"abstains, {chosen.why}"
        if spread.energy is None:
            return head + result
        apart = f"; spread of {len(spread.branches)} branches: {spread.energy:.3f} eV/atom"
        return head + result + apart + ("" if spread.forces is None else f", {spread.forces:.3f} eV/Å")


def route_file(model: Model, path: Path, confident: float = CONFIDENT, form: str | None = None) -> Iterator[Line]:
    """Routes the structures of a file in bounded memory.

    Args:
        model: with a router.
        path: any file that ASE reads.
        confident: abstain below this confidence.
        form: format name of ASE; None to detect the format.

    Raises:
        RamifyError: the model has no router, or the file or one of its frames cannot be read.
    """
    router, quarantine = router_of(model), Quarantine()
    chunk: list[tuple[int, Atoms]] = []

    def lines() -> Iterator[Line]:
        structures = Structures.from_ase([atoms for _, atoms in chunk])
        spread, unknown = spreads(model, structures)
        known = np.array([k for k in range(len(chunk)) if k not in unknown], np.int64)
        chosen = dict(zip(known.tolist(), router.route(model, structures.take(known), confident), strict=True))
        for k, (index, atoms) in enumerate(chunk):
            nothing = Choice(None, 0.0, {}, None, f"no branch predicts it: {unknown.get(k, '')}")
            yield Line(index, str(atoms.symbols), chosen.get(k, nothing), spread[k])
        chunk.clear()

    for entry in frames(path, quarantine, form=form):
        chunk.append(entry)
        if len(chunk) == CHUNK:
            yield from lines()
    if chunk:
        yield from lines()
    if quarantine.total:
        raise RamifyError(
            f"{path}: {quarantine.total} frames could not be read", fix="correct them; all others are above"
        )
