"""Parquet of ColabFit (materials.colabfit.org/docs/configuration_schema) and LeMaterial (LeMat-Traj's features)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ramify.elements import NUMBERS
from ramify.errors import RamifyError
from ramify.sources.look import look

pytest.importorskip("pyarrow")
import pyarrow.parquet


def crystals(count: int = 6) -> list[dict[str, Any]]:
    """Rows of ColabFit."""
    rng = np.random.default_rng(5)
    made = []
    for k in range(count):
        n = 2 + k % 3
        made.append(
            {
                "configuration_id": f"CO_{k}",
                "method": "DFT-PBE",
                "atomic_numbers": rng.integers(1, 84, n).tolist(),
                "positions": rng.normal(0, 3, (n, 3)).tolist(),
                "cell": (np.eye(3) * 9 + rng.normal(0, 0.1, (3, 3))).tolist(),
                "pbc": [True, True, k % 2 == 0],
                "energy": rng.normal(-50, 1),
                "atomic_forces": rng.normal(0, 1, (n, 3)).tolist(),
                "cauchy_stress": (lambda s: (s + s.T).tolist())(rng.normal(0, 0.1, (3, 3))),
                "cauchy_stress_volume_normalized": True,
            }
        )
    return made


def write_parquet(path: Path, made: list[dict[str, Any]], rows: int = 4) -> Path:
    """Writes rows, so many in a group."""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), str(path), row_group_size=rows)
    return path


def trajectories() -> list[dict[str, Any]]:
    """Rows of LeMaterial."""
    rng = np.random.default_rng(6)
    return [
        {
            "immutable_id": f"agm{k // 2}",
            "functional": "pbe",
            "dimension_types": [1, 1, 1],
            "lattice_vectors": (np.eye(3) * 5).tolist(),
            "species_at_sites": ["Na", "Cl"],
            "cartesian_site_positions": rng.normal(0, 1, (2, 3)).tolist(),
            "energy": -7.0 - k,
            "forces": rng.normal(0, 1, (2, 3)).tolist(),
            "stress_tensor": np.diag([10.0 + k, 20.0, 30.0]).tolist(),
        }
        for k in range(4)
    ]


def test_colabfit(tmp_path: Path, read: Any) -> None:
    """Compared with the rows as they were written."""
    made = crystals()
    keys = {"stress_key": "cauchy_stress", "stress_sign": -1, "units": {"stress": "eV/A^3"}}
    found, quarantine = read("parquet", write_parquet(tmp_path / "co_0.parquet", made), **keys)
    assert quarantine.total == 0
    assert found.numbers.tolist() == [z for row in made for z in row["atomic_numbers"]]
    for name, key in (("positions", "positions"), ("forces", "atomic_forces")):
        np.testing.assert_array_equal(getattr(found, name), np.concatenate([row[key] for row in made]))
    np.testing.assert_array_equal(found.cell, [row["cell"] for row in made])
    np.testing.assert_array_equal(found.stress, [-np.array(row["cauchy_stress"]) for row in made])
    np.testing.assert_array_equal(found.energy, [row["energy"] for row in made])
    np.testing.assert_array_equal(found.pbc, [row["pbc"] for row in made])
    assert found.name(5) == "co_0.parquet[5]"
    plain, _ = read("parquet", tmp_path / "co_0.parquet", where={"configuration_id": ["CO_1", "CO_5"]})
    assert plain.row.tolist() == [1, 5]
    assert np.isnan(plain.stress).all()


def test_lematerial(tmp_path: Path, read: Any) -> None:
    made = trajectories()
    keys = {"stress_key": "stress_tensor", "stress_sign": -1, "units": {"stress": "kBar"}}
    found, _ = read("parquet", write_parquet(tmp_path / "a.parquet", made), **keys)
    assert found.numbers.tolist() == [NUMBERS["Na"], NUMBERS["Cl"]] * 4
    assert found.group_names == ("agm0", "agm1")
    assert found.pbc.all()
    np.testing.assert_allclose(found.stress[:, 0, 0], [-6.2415091e-4 * (10 + k) for k in range(4)], rtol=1e-7)
    np.testing.assert_array_equal(found.positions, np.concatenate([row["cartesian_site_positions"] for row in made]))


def test_a_stress_is_described_by_the_recipe(tmp_path: Path, read: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", crystals())
    for keys, absent in (({}, "stress_sign"), ({"stress_sign": 1}, "units.stress")):
        with pytest.raises(ValidationError, match=f"needs `{absent}`"):
            read("parquet", path, stress_key="cauchy_stress", **keys)
    made = crystals()
    made[2]["cauchy_stress_volume_normalized"] = False
    keys = {"stress_key": "cauchy_stress", "stress_sign": 1, "units": {"stress": "eV/Å³"}}
    found, quarantine = read("parquet", write_parquet(tmp_path / "b.parquet", made), **keys)
    assert np.isnan(found.stress).all(axis=(1, 2)).tolist() == [False, False, True, False, False, False]
    assert quarantine.remarks == {"stress not divided by the volume, left out": 1}


def test_what_cannot_be_read(tmp_path: Path, read: Any) -> None:
    made = crystals()
    made[0]["energy"] = None
    made[1]["positions"][0][1] = None
    made[2]["atomic_forces"][1] = [1.0]
    made[3]["atomic_numbers"][0] = 200
    made[4]["positions"] = None
    found, quarantine = read("parquet", write_parquet(tmp_path / "a.parquet", made))
    assert found.row.tolist() == [5]
    counts = {"label not computed": 1, "malformed forces": 1, "malformed structure": 3}
    assert quarantine.counts == counts
    mixed = crystals()
    mixed[5]["method"] = "DFT-PBE0"
    path = write_parquet(tmp_path / "b.parquet", mixed)
    with pytest.raises(RamifyError, match=r"(?s)'DFT-PBE' and 'DFT-PBE0' .*method.*where: "):
        read("parquet", path)
    assert len(read("parquet", path, where={"method": "DFT-PBE"})[0]) == 5
    with pytest.raises(RamifyError, match=r"no column 'energi' .*did you mean 'energy'"):
        read("parquet", path, energy_key="energi")
    with pytest.raises(RamifyError, match="no columns of structures: it has x; accepted are atomic_numbers"):
        read("parquet", write_parquet(tmp_path / "c.parquet", [{"x": 1}]))
    (tmp_path / "d.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RamifyError, match="cannot be read as Parquet"):
        read("parquet", tmp_path / "d.parquet")


def test_it_is_recognised(tmp_path: Path) -> None:
    found = look(write_parquet(tmp_path / "co_0.parquet", crystals()))
    assert (found.format, found.structures) == ("parquet", 6)
    assert found.keys["energy"] == "double"
