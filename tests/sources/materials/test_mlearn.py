"""mlearn: the original lists and ALIGNN's copies with energies per atom."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.errors import RamifyError


def test_both_dialects(tmp_path: Path, read: Any, crystal: Any) -> None:
    matrix = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]]
    structure = crystal(["Si", "Si"], [[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], matrix)
    outputs = {"energy": -10.0, "forces": [[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]], "virial_stress": [1.0] * 6}
    record = {"structure": structure, "element": "Si", "outputs": outputs}
    original = [
        record | {"group": "AIMD-NVT", "description": "Snapshot 3 of 40 of AIMD NVT simulation at 300 K"},
        record | {"group": "AIMD-NVT", "description": "Snapshot 4 of 40 of AIMD NVT simulation at 300 K"},
        record | {"group": "Elastic", "description": "Si 2x2x2 cell, mode 0, strain -0.02"},
        record | {"group": "Elastic", "description": "Si 2x2x2 cell, mode 1, strain -0.02"},
    ]
    (tmp_path / "training.json").write_text(json.dumps(original))
    found, quarantine = read("mlearn", tmp_path / "training.json")
    assert quarantine.total == 0
    assert found.energy.tolist() == [-10.0] * 4
    assert found.group_names == ("Si/AIMD-NVT/AIMD NVT simulation at 300 K", "Si/Elastic/")
    assert found.group.tolist() == [0, 0, 1, 1]
    assert found.pbc.all()
    assert np.isnan(found.stress).all()

    atoms = {
        "lattice_mat": matrix,
        "coords": [[0, 0, 0], [0.25, 0.5, 0.75]],
        "elements": ["Ni", "Ni"],
        "cartesian": False,
    }
    alignn = [{"jid": "1", "atoms": atoms, "total_energy": -5.0, "forces": outputs["forces"], "stresses": [1.0] * 6}]
    (tmp_path / "id_prop.json").write_text(json.dumps(alignn))
    with pytest.raises(RamifyError, match=r"1 records are plausible(.|\n)*`energy_is_per_atom: true`"):
        read("mlearn", tmp_path / "id_prop.json")  # -5 eV of a few atoms may be either
    found, _ = read("mlearn", tmp_path / "id_prop.json", energy_is_per_atom=True)
    assert found.energy.tolist() == [-10.0]  # the file's total_energy is per atom
    np.testing.assert_allclose(found.positions, [[0, 0, 0], [1, 2, 3]])
    assert np.isnan(found.stress).all()


def test_other_json_is_refused(tmp_path: Path, read: Any) -> None:
    (tmp_path / "x.json").write_text('[{"a": 1}]')
    with pytest.raises(RamifyError, match="not of format 'mlearn'"):
        read("mlearn", tmp_path / "x.json")


@pytest.mark.parametrize(
    ("file", "count", "atoms", "energies"),
    [
        ("Si/training.json", 214, (12, 96), (-5.4253, -5.2979, -4.5666)),
        ("Mo/training.json", 194, (2, 54), (-10.8502, -10.6691, -9.4083)),
        ("Ni_alignn_id_prop.json", 325, (6, 108), (-5.7808, -5.7130, -5.1391)),
        ("Cu_alignn_id_prop.json", 324, (6, 108), (-4.1012, -4.0487, -3.5155)),
    ],
)
def test_real_files(
    shared: Path, read: Any, file: str, count: int, atoms: tuple[int, int], energies: tuple[float, float, float]
) -> None:
    found, quarantine = read("mlearn", shared / "data/mlearn_pbe_vasp" / file)
    assert len(found) == count
    assert quarantine.total == 0
    assert (found.n_atoms.min(), found.n_atoms.max()) == atoms
    per_atom = found.energy / found.n_atoms
    assert (per_atom.min(), np.median(per_atom), per_atom.max()) == pytest.approx(energies, abs=1e-4)
    assert found.pbc.all()
