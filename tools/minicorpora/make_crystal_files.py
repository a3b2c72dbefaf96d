"""Writes mptrj_mini and alexandria_mini from the results of label_crystals.py.

python tools/minicorpora/make_crystal_files.py --out OUT
"""

import argparse
import bz2
import json
from pathlib import Path
from typing import Any

import numpy as np
from crystals import ALEXANDRIA, FILES, MPTRJ, Crystal
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from tasks import Arrays, load_result

GPA = 0.0062415091  # eV/Å³
CODE = "GPAW PW(500 eV), PBE PAW data sets 0.9.20000"
MAX_PRESSURE = 12 * GPA  # of the volume-relaxed crystal: above it the search for the volume has not converged
MAX_PRESSURE_AS_LISTED = (
    20 * GPA
)  # at the lattice constants of the list: above it they are wrong, or the sites are swapped
SHIFT = Path(__file__).with_name("pbesol_atom_shift.json")


def vasp_kbar(stress: np.ndarray) -> list[list[float]]:
    """(3, 3) eV/Å³, tension positive -> kBar, compression positive, as VASP prints it and both data sets store it."""
    kbar: list[list[float]] = (-10 * stress / GPA).round(5).tolist()
    return kbar


def structure(result: Arrays, k: int, **properties: list[Any]) -> Structure:
    """Structure `k` of a material, with properties per site."""
    lattice, numbers = Lattice(result["cell"][k]), [int(z) for z in result["numbers"]]
    return Structure(
        lattice, numbers, result["positions"][k], coords_are_cartesian=True, site_properties=properties or None
    )


def gaps(result: Arrays) -> list[float]:
    """Indirect and direct gap, eV, not below zero."""
    return [max(0.0, round(float(gap), 4)) for gap in np.nan_to_num(result["gap"])]


def mptrj_material(result: Arrays, crystal: Crystal, name: str) -> dict[str, Any]:
    """The calculation rows of one material."""
    n, rows = len(result["numbers"]), {}
    for k, energy in enumerate(map(float, result["energy"])):
        rows[f"{name}-0-{k}"] = {
            "structure": structure(result, k).as_dict(),
            "uncorrected_total_energy": energy,
            "corrected_total_energy": energy,
            "energy_per_atom": energy / n,
            "ef_per_atom": None,
            "e_per_atom_relaxed": float(result["energy"][-1] / n),
            "ef_per_atom_relaxed": None,
            "force": result["forces"][k].round(8).tolist(),
            "stress": vasp_kbar(result["stress"][k]),
            "magmom": result["magmoms"][k].round(5).tolist() if crystal.kind == "f" else None,
            "bandgap": gaps(result)[0],
            "mp_id": name,
        }
    return rows


def alexandria_entry(
    result: Arrays, k: int, crystal: Crystal, parent: str, shift: dict[str, float]
) -> ComputedStructureEntry:
    """Structure `k` of one material, its energy relative to PBEsol atoms."""
    n, name = len(result["numbers"]), f"{parent}-{k}"
    made = structure(result, k, forces=result["forces"][k].round(8).tolist(), magmom=[0.0] * n)
    elements = [site.specie.symbol for site in made]
    total = float(result["energy"][k]) - sum(shift[e] for e in elements)
    bare = made.copy(site_properties={})
    indirect, direct = gaps(result)
    data = {
        "mat_id": name,
        "parent_id": parent,
        "prototype_id": crystal.prototype,
        "formula": made.composition.reduced_formula,
        "elements": sorted(set(elements)),
        "nsites": n,
        "spg": SpacegroupAnalyzer(bare, symprec=1e-3).get_space_group_number(),
        "energy_total": total,
        "energy_corrected": total,
        "e_form": None,
        "e_above_hull": None,
        "e_phase_separation": None,
        "total_mag": 0.0,
        "dos_ef": None,
        "band_gap_ind": indirect,
        "band_gap_dir": direct,
        "stress": vasp_kbar(result["stress"][k]),
    }
    parameters = {"functional": "PBEsol", "code": CODE, "kpoints": [int(x) for x in result["kpts"]]}
    return ComputedStructureEntry(made, total, correction=0.0, entry_id=name, parameters=parameters, data=data)


def write_mptrj(work: Path, path: Path, earlier: Path | None) -> None:
    """Writes the JSON file of an earlier one, whose materials stay as they are, and of all finished materials."""
    materials = json.loads(earlier.read_text()) if earlier else {}
    for i, crystal in enumerate(MPTRJ, 1):
        result = load_result(work, crystal.name)
        if result is None or f"rm-{i}" in materials:
            continue
        if abs(np.trace(result["stress"][-1])) / 3 > MAX_PRESSURE_AS_LISTED:
            print(f"{crystal.name} is left out: its lattice constants are not relaxed")
            continue
        materials[f"rm-{i}"] = mptrj_material(result, crystal, f"rm-{i}")
    materials = dict(sorted(materials.items(), key=lambda item: int(item[0].removeprefix("rm-"))))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(materials, separators=(",", ":")))
    print(f"{path}: {len(materials)} materials, {sum(map(len, materials.values()))} structures")


def write_alexandria(work: Path, path: Path, shift: dict[str, float], earlier: Path | None) -> None:
    """Writes the compressed JSON file of an earlier one and of all finished materials with a converged volume."""
    entries: list[dict[str, Any]] = json.loads(bz2.decompress(earlier.read_bytes()))["entries"] if earlier else []
    parents = {entry["data"]["parent_id"] for entry in entries}
    for i, crystal in enumerate(ALEXANDRIA, 1):
        result = load_result(work, crystal.name)
        if result is None:
            continue
        if abs(np.trace(result["stress"][0])) / 3 > MAX_PRESSURE:
            print(f"{crystal.name} is left out: the search for its volume has not converged")
            continue
        parent = f"rmagm{i:04d}"
        if parent in parents:
            continue
        parents.add(parent)
        entries += [alexandria_entry(result, k, crystal, parent, shift).as_dict() for k in range(len(result["energy"]))]
    entries.sort(key=lambda entry: entry["data"]["parent_id"])
    text = json.dumps({"entries": entries}, separators=(",", ":"), default=float)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bz2.compress(text.encode()))
    print(f"{path}: {len(parents)} materials, {len(entries)} structures")


def main() -> None:
    """Writes both files."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder that label_crystals.py was given")
    options.add_argument("--earlier", type=Path, help="folder of the earlier corpora: their materials are kept")
    options.add_argument("--shift", type=Path, default=SHIFT, help="file of atom_shift.py")
    args = options.parse_args()
    shift = json.loads(args.shift.read_text())["shift_eV"]
    work, earlier = args.out / "work", args.earlier
    mptrj, alexandria = FILES["mptrj"], FILES["alexandria"]
    write_mptrj(work / "mptrj", args.out / mptrj, earlier and earlier / mptrj)
    write_alexandria(work / "alexandria", args.out / alexandria, shift, earlier and earlier / alexandria)


if __name__ == "__main__":
    main()
