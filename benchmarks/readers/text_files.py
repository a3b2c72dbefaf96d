"""Files of text: JSON, extended XYZ and OC20."""

import json
import lzma
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
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


RECORDS = {"mptrj": _mptrj, "alexandria": _alexandria, "matpes": _matpes, "jarvis": _jarvis, "mlearn": _mlearn}
KEYS: dict[str, dict[str, Any]] = {"jarvis": {"energy_is_per_atom": False}, "mlearn": {"energy_is_per_atom": False}}


def write_json(name: str, path: Path, size: float) -> dict[str, Any]:
    """Writes a JSON file of about `size` bytes; returns the keys of its recipe."""
    texts = [json.dumps(RECORDS[name](sample)) for sample in pool()]
    begin, end = {"mptrj": ("{", "}"), "alexandria": ('{"entries": [', "]}")}.get(name, ("[", "]"))
    with path.open("w") as file:
        file.write(begin)
        for k, text in _until(size, texts):
            named = f'"mp-{k}": {{"mp-{k}-0-0": {text}}}' if name == "mptrj" else text
            file.write((", " if k else "") + named.replace("@", str(k)))
        file.write(end)
    return KEYS.get(name, {})


def _until(size: float, texts: list[str]) -> Iterator[tuple[int, str]]:
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
        for _, text in _until(size, texts):
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


def _numbers(rows: Any, line: str = "   <v>  {} </v>\n") -> str:
    return "".join(line.format(" ".join(f"{x:16.8f}" for x in row)) for row in rows)


def write_vasprun(path: Path, size: float) -> dict[str, Any]:
    """Writes ionic steps of one structure as in VASP's `vasprun.xml`, without eigenvalues."""
    samples = [s for s in pool() if len(s.numbers) == max(len(p.numbers) for p in pool())]
    n = len(samples[0].numbers)
    basis = f'<crystal>\n<varray name="basis" >\n{_numbers(CELL)}</varray>\n</crystal>\n'
    place = [f'<varray name="positions" >\n{_numbers(s.positions / 9.0)}</varray>\n' for s in samples]
    steps = []
    for s, positions in zip(samples, place, strict=True):
        names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
        energy = "<energy>\n" + "".join(f'<i name="{name}"> {s.energy:16.8f} </i>\n' for name in names) + "</energy>\n"
        labels = "".join(
            f'<varray name="{name}" >\n{_numbers(rows)}</varray>\n'
            for name, rows in (("forces", s.forces), ("stress", s.stress))
        )
        scf = f"<scstep>\n{energy}</scstep>\n" * 12
        steps.append(
            f" <calculation>\n{scf}<structure>\n{basis}{positions}</structure>\n{labels}{energy} </calculation>\n"
        )
    atoms = "".join(f"<rc><c>{chemical_symbols[z]}</c><c>1</c></rc>\n" for z in samples[0].numbers.tolist())
    with path.open("w") as file:
        file.write('<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<kpoints>\n</kpoints>\n<parameters>\n')
        file.write(f'</parameters>\n<atominfo>\n<atoms>{n}</atoms>\n<array name="atoms" >\n<set>\n{atoms}</set>\n')
        file.write(f'</array>\n</atominfo>\n<structure name="initialpos" >\n{basis}{place[0]}</structure>\n')
        for _, text in _until(size, steps):
            file.write(text)
        file.write("</modeling>\n")
    return {}


def write_outcar(path: Path, size: float) -> dict[str, Any]:
    """Writes ionic steps of one structure as in VASP's OUTCAR."""
    s = max(pool(), key=lambda sample: len(sample.numbers))
    kinds, counts = np.unique(s.numbers, return_counts=True)
    names = "".join(f" POTCAR:    PAW_PBE {chemical_symbols[z]} 05Jan2001\n" for z in kinds.tolist())
    vectors = _numbers(np.hstack([CELL, CELL / 81]), "  {}\n")
    rows = _numbers(np.hstack([s.positions, s.forces]), "  {}\n")
    with path.open("w") as file:
        file.write(
            f" vasp.6.3.2 27Jun22 (build) complex\n{names * 2}   ISPIN  =      1    spin polarized calculation?\n"
        )
        file.write(f"   ions per type =        {' '.join(map(str, counts.tolist()))}\n")
        file.write(
            "   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS= 9\n"
        )
        file.write(" k-points in reciprocal lattice and weights: gamma\n   0.0  0.0  0.0       1.000\n")
        step = (
            f"  Iteration      1(   1)  \n E-fermi :   1.2345     XC(G=0):  -8.0     alpha+bet : -6.0\n"
            "  FORCE on cell =-STRESS in cart. coord.  units (eV):\n"
            "  Direction    XX          YY          ZZ          XY          YZ          ZX\n"
            "  in kB   1.0 2.0 3.0 0.1 0.2 0.3\n"
            f"      direct lattice vectors                 reciprocal lattice vectors\n{vectors}\n"
            f" POSITION                                       TOTAL-FORCE (eV/Angst)\n {'-' * 83}\n{rows} {'-' * 83}\n"
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  -----------\n"
            f"  free  energy   TOTEN  = {s.energy:18.8f} eV\n\n"
            f"  energy  without entropy={s.energy:18.8f}  energy(sigma->0) ={s.energy:18.8f}\n"
        )
        for _, text in _until(size, [step]):
            file.write(text)
        file.write(" General timing and accounting informations for this job:\n")
    return {}
