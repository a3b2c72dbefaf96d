"""Files of text: JSON, extended XYZ and OC20."""

import json
import lzma
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols
from benchmarks.readers.pool import CELL, Sample, pool


def structure(sample: Sample, *, with_forces: bool = False) -> dict[str, Any]:
    """A structure as pymatgen writes it."""
    sites = [
        {
            "species": [{"element": chemical_symbols[z], "occu": 1}],
            "abc": (r / 9.0).tolist(),
            "xyz": r.tolist(),
            "label": chemical_symbols[z],
            "properties": {"forces": f.tolist()} if with_forces else {},
        }
        for z, r, f in zip(sample.numbers.tolist(), sample.positions, sample.forces, strict=True)
    ]
    return {"@class": "Structure", "lattice": {"matrix": CELL.tolist(), "pbc": [True] * 3}, "sites": sites}


def _mptrj(s: Sample) -> dict[str, Any]:
    return {
        "structure": structure(s),
        "uncorrected_total_energy": s.energy,
        "corrected_total_energy": s.energy,
        "force": s.forces.tolist(),
        "stress": (1000 * s.stress).tolist(),
        "magmom": None,
        "mp_id": "@",
    }


def _alexandria(s: Sample) -> dict[str, Any]:
    data = {"mat_id": "agm@", "energy_total": s.energy, "stress": s.stress.tolist()}
    return {"energy": s.energy, "structure": structure(s, with_forces=True), "data": data, "composition": {}}


def _matpes(s: Sample) -> dict[str, Any]:
    return {
        "matpes_id": "matpes-@",
        "functional": "PBE",
        "structure": structure(s),
        "energy": s.energy,
        "forces": s.forces.tolist(),
        "stress": s.stress.reshape(-1)[[0, 4, 8, 5, 2, 1]].tolist(),
        "provenance": {"original_mp_id": "mp-@"},
    }


def _jarvis(s: Sample) -> dict[str, Any]:
    elements = [chemical_symbols[z] for z in s.numbers.tolist()]
    atoms = {"lattice_mat": CELL.tolist(), "coords": s.positions.tolist(), "elements": elements, "cartesian": True}
    return {"jid": "JVASP-@", "atoms": atoms, "total_energy": s.energy, "forces": s.forces.tolist()}


def _mlearn(s: Sample) -> dict[str, Any]:
    outputs = {"energy": s.energy, "forces": s.forces.tolist(), "virial_stress": [0.0] * 6}
    return {"structure": structure(s), "outputs": outputs, "group": "AIMD", "description": "@", "element": "Si"}


def _fitsnap(s: Sample) -> dict[str, Any]:
    return {
        "Positions": s.positions.tolist(),
        "Energy": s.energy,
        "Forces": s.forces.tolist(),
        "Stress": (1e5 * s.stress).tolist(),
        "Lattice": CELL.tolist(),
        "AtomTypes": [chemical_symbols[z] for z in s.numbers.tolist()],
        "NumAtoms": len(s.numbers),
    }


RECORDS = {
    "mptrj": _mptrj,
    "alexandria": _alexandria,
    "matpes": _matpes,
    "jarvis": _jarvis,
    "mlearn": _mlearn,
    "fitsnap": _fitsnap,
}
KEYS: dict[str, dict[str, Any]] = {"jarvis": {"energy_is_per_atom": False}, "mlearn": {"energy_is_per_atom": False}}


def write_json(name: str, path: Path, size: float) -> dict[str, Any]:
    """Writes a JSON file of about `size` bytes; returns the keys of its recipe."""
    texts = [json.dumps(RECORDS[name](sample)) for sample in pool()]
    around = {"mptrj": ("{", "}"), "alexandria": ('{"entries": [', "]}"), "fitsnap": ('{"Dataset": {"Data": [', "]}}")}
    begin, end = around.get(name, ("[", "]"))
    with path.open("w") as file:
        file.write(begin)
        for k, text in until(size, texts):
            named = f'"mp-{k}": {{"mp-{k}-0-0": {text}}}' if name == "mptrj" else text
            file.write((", " if k else "") + named.replace("@", str(k)))
        file.write(end)
    return KEYS.get(name, {})


def until(size: float, texts: list[str]) -> Iterator[tuple[int, str]]:
    """Yields the texts, again and again, with their numbers, until they have `size` characters."""
    written = 0
    for k in count():
        if written >= size:
            return
        yield k, texts[k % len(texts)]
        written += len(texts[k % len(texts)])


def _frames(properties: str, columns: str) -> list[str]:
    made = []
    for s in pool():
        head = f'Lattice="9 0 0 0 9 0 0 0 9" Properties={properties} energy={s.energy} pbc="T T T"'
        rows = [
            f"{chemical_symbols[z]} {r[0]:.8f} {r[1]:.8f} {r[2]:.8f} {columns} {f[0]:.8f} {f[1]:.8f} {f[2]:.8f}"
            for z, r, f in zip(s.numbers.tolist(), s.positions, s.forces, strict=True)
        ]
        made.append("\n".join([str(len(rows)), head, *rows]) + "\n")
    return made


def write_extxyz(path: Path, size: float) -> dict[str, Any]:
    """Writes extended XYZ of about `size` bytes."""
    texts = _frames("species:S:1:pos:R:3:forces:R:3", "")
    with path.open("w") as file:
        for _, text in until(size, texts):
            file.write(text)
    return {}


def write_oc20(path: Path, size: float) -> dict[str, Any]:
    """Writes `N.extxyz.xz`, of about `size` bytes uncompressed, and `N.txt.xz`, as streams of xz one after another."""
    texts = _frames("species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3", "T 1")
    packed = lzma.compress("".join(texts).encode(), preset=0)
    repeats = math.ceil(size / sum(map(len, texts)))
    with path.open("wb") as file:
        for _ in range(repeats):
            file.write(packed)
    with lzma.open(path.with_name(path.name.replace("extxyz", "txt")), "wt", preset=0) as lines:
        for k in range(repeats * len(texts)):
            lines.write(f"random{k // 20},frame{k % 20},-5.0\n")
    return {}
