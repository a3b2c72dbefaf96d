"""What the embedded corpora hold: numbers that tests compare with files, stores and what commands print."""

import re
from typing import NamedTuple

from ramify.minicorpora import FOLDER


class Held(NamedTuple):
    """Labelled structures, systems, atoms, smallest and largest structure, largest force component (eV/Å)."""

    structures: int
    systems: int
    atoms: int
    smallest: int
    largest: int
    force: float


HELD: dict[str, Held] = {
    "ani1x_mini": Held(1940, 88, 14924, 2, 14, 26.936),
    "qm7x_mini": Held(1958, 153, 13606, 2, 11, 18.928),
    "transition1x_mini": Held(1822, 150, 11772, 3, 9, 20.173),
    "mptrj_mini": Held(1208, 151, 2912, 2, 6, 2.894),
    "alexandria_mini": Held(492, 123, 1156, 2, 5, 0.725),
}


ELEMENTS = {
    "ani1x_mini": "H C N O",
    "qm7x_mini": "H C N O S Cl",
    "transition1x_mini": "H C N O",
    "mptrj_mini": "H Li Be B C N O F Na Mg Al Si P S Cl K Ca Sc Ti V Fe Ni Cu Zn Ga Ge As Se Br Rb Sr Y Zr Mo "
    "Pd Ag Cd In Sn Sb Te I Cs Ba Ta W Pt Au Hg Tl Pb",
    "alexandria_mini": "H Li Be B C N O F Na Mg Al Si P S Cl K Ca Ti Ni Cu Zn Ga Ge As Se Br Rb Sr Y Zr Nb Mo Ru "
    "Pd Ag Cd In Sn Sb Te I Cs Ba Hf Ta W Au Hg Tl Pb",
}


def readme(name: str) -> str:
    """The page of a corpus."""
    return (FOLDER / name / "README.md").read_text(encoding="utf-8")


def stated_slope(name: str) -> tuple[float, int]:
    """Energy-force slope of a corpus and the number of pairs, as its page states them."""
    found = re.search(r"energy-force slope\s+([\d.]+) over (?:the )?(\d+) pairs", readme(name))
    assert found is not None
    return float(found[1]), int(found[2])


def stated_energies(name: str) -> tuple[float, float]:
    """Lowest and highest energy per atom of a corpus, eV, as its page states them."""
    found = re.search(r"\| energy per atom \| (\S+) to (\S+) eV", readme(name))
    assert found is not None
    return float(found[1]), float(found[2])
