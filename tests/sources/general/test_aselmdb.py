"""The published `.aselmdb` files, written by hand in the layout of each set; values against ASE and against JSON.

A row is JSON under zlib, with arrays as `__ndarray__` (gitlab.com/ase/ase-db-backends, aselmdb.py; ase.io.jsonio). The
names in `data` are those that the publishers, or readers of the full files, state:

- OMol25 and OPoly26: DATASET.md of huggingface.co/facebook/OMol25; `spin` is the multiplicity
  (fair-chem.github.io/molecules/datasets/omol25.html).
- OC25 and ODAC25: ColabFit's readers of huggingface.co/facebook/OC25 and ODAC25 (materials.colabfit.org,
  DS_fanupene3rn7_0 and DS_efdsbceoo5gc_0). Neither states charge or spin.
- OMC25: ColabFit's reader of huggingface.co/facebook/OMC25 (DS_beoiy4mqhhex_0): the labels alone.
- OMat24: huggingface.co/datasets/facebook/OMAT24; `sid` of fairchem's AseDBDataset.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io.jsonio import encode

from ramify.sources.look import look
from ramify.sources.recognize import recognize

RNG = np.random.default_rng(5)


def omol(charge: int, spin: int, domain: str) -> dict[str, Any]:
    """Values of `data` in OMol25 and OPoly26."""
    return {
        "source": f"omol/{domain}/mol1129_{charge}_{spin}/step3/orca.tar.zst",
        "reference_source": None,
        "data_id": domain,
        "charge": charge,
        "spin": spin,
        "num_atoms": 3,
        "num_electrons": 10 - charge,
        "num_ecp_electrons": 0,
        "n_scf_steps": 16,
        "n_basis": 43,
        "unrestricted": spin > 1,
        "nl_energy": 41.25,
        "integrated_densities": np.array([5.0, 5.0, 10.0]),
        "homo_energy": np.array([-8.8]),
        "homo_lumo_gap": np.array([8.3]),
        "s_squared": 0.0,
        "warnings": [],
        "mulliken_charges": RNG.normal(0, 1, 3),
        "lowdin_charges": RNG.normal(0, 1, 3),
        "composition": "H2O1",
        **({"mulliken_spins": RNG.normal(0, 1, 3)} if spin > 1 else {}),
    }


def odac(mof: str, water: int) -> dict[str, Any]:
    """Values of `data` in ODAC25; `energy` is the total one once more."""
    names = {"name": f"{mof}_w{water}", "mof_name": mof, "mof_type": "pristine", "sid": f"{mof}.{water}", "fid": water}
    counts = {"nco2": 0, "nh2o": water, "nn2": 0, "no2": 0, "nads": water}
    return names | counts | {"energy_ads": -0.31, "energy_ads_corrected": -0.29, "energy_mof": -700.0}


SETS: dict[str, tuple[bool, list[dict[str, Any]], str | None]] = {
    "omol25": (False, [omol(0, 1, "elytes"), omol(1, 2, "elytes"), omol(0, 3, "reactivity")], None),
    "opoly26": (False, [omol(0, 1, "polymers"), omol(-1, 2, "polymers")], None),
    "oc25": (True, [{"source": f"random{k}", "fid": k, "total_drift": 0.02} for k in (0, 0, 1)], "source"),
    "omc25": (True, [{}, {}], None),
    "odac25": (True, [odac("AGUTEW", 0), odac("AGUTEW", 1), odac("BIMDIL", 1)], "mof_name"),
    "omat24": (True, [{"sid": f"agm{k}_rattled-300"} for k in range(2)], "sid"),
}
"""By set: whether it is periodic, `data` of each row, and the key of the group."""


def rows_of(name: str) -> list[dict[str, Any]]:
    """Rows of a set: the values of ASE's `AtomsRow`."""
    periodic, values, _ = SETS[name]
    made = []
    for k, data in enumerate(values):
        row: dict[str, Any] = {
            "numbers": np.array([8, 1, 1]),
            "positions": RNG.normal(0, 2, (3, 3)),
            "cell": 9.0 * np.eye(3) + RNG.normal(0, 0.1, (3, 3)) if periodic else np.zeros((3, 3)),
            "pbc": np.array([periodic] * 3),
            "calculator": "unknown",
            "calculator_parameters": {},
            "energy": -2079.5 - k,
            "forces": RNG.normal(0, 1, (3, 3)),
            "data": data | ({"energy": -2079.5 - k} if name == "odac25" else {}),
            "key_value_pairs": {},
            "ctime": 25.0,
            "mtime": 25.0,
            "user": None,
            "unique_id": f"{k:032x}",
        }
        if name in ("omc25", "omat24"):
            row["stress"] = RNG.normal(0, 0.01, 6)
        if name in ("oc25", "omat24"):  # of a slab, some atoms are fixed: forces are those of the calculation
            row["constraints"] = [FixAtoms([0]).todict()]
        made.append(row)
    return made


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A file with a gap in its ids: row 2 is a deleted one."""
    ids = [1, *range(3, len(rows) + 2)]
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as entries:
        for index, row in zip(ids, rows, strict=True):
            entries.put(str(index).encode(), zlib.compress(encode(row).encode()))
        for key, value in {"nextid": len(rows) + 2, "deleted_ids": [2], "metadata": {}}.items():
            entries.put(key.encode(), zlib.compress(json.dumps(value).encode()))
    return path


def as_json(path: Path) -> list[dict[str, Any]]:
    """Rows as plain JSON, arrays by hand: `__ndarray__` is shape, type and the flat list."""

    def unpacked(value: Any) -> Any:
        if isinstance(value, dict) and "__ndarray__" in value:
            shape, kind, flat = value["__ndarray__"]
            return np.array(flat, kind).reshape(shape)
        return {k: unpacked(v) for k, v in value.items()} if isinstance(value, dict) else value

    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as entries:
        found = {int(key): value for key, value in entries.cursor() if key.isdigit()}
    return [unpacked(json.loads(zlib.decompress(found[index]))) for index in sorted(found)]


@pytest.mark.parametrize("name", SETS)
def test_every_set(tmp_path: Path, read: Any, name: str) -> None:
    path = written(tmp_path / "data0000.aselmdb", rows_of(name))
    periodic, values, group = SETS[name]
    ions = name in ("omol25", "opoly26")
    keys = {"charge_key": "charge", "spin_key": "spin"} if ions else {}
    found, quarantine = read("ase_db", path, **keys, **({"group_key": group} if group else {}))
    assert recognize(path) == "ase_db"
    assert quarantine.total == 0
    expected = as_json(path)
    assert found.energy.tolist() == [row["energy"] for row in expected]
    for column in ("numbers", "positions", "forces"):
        np.testing.assert_array_equal(getattr(found, column), np.concatenate([row[column] for row in expected]))
    np.testing.assert_array_equal(found.cell, [row["cell"] for row in expected])
    assert found.pbc.all() == found.pbc.any() == periodic
    assert found.row.tolist() == [1, *range(3, len(expected) + 2)]
    with connect(str(path), readonly=True) as database:  # as fairchem reads them
        images: list[Atoms] = [database.get_atoms(id=index) for index in found.row.tolist()]
    np.testing.assert_array_equal(found.forces, np.concatenate([a.get_forces(apply_constraint=False) for a in images]))
    if "stress" in expected[0]:
        np.testing.assert_array_equal(found.stress, [atoms.get_stress(voigt=False) for atoms in images])
    else:
        assert np.isnan(found.stress).all()
    if ions:
        assert found.charge.tolist() == [row["charge"] for row in values]
        assert found.spin.tolist() == [row["spin"] for row in values]
    else:
        assert np.isnan([found.charge, found.spin]).all()  # absent, not 0 and 1
    if group:
        assert [found.group_names[g] for g in found.group] == [row[group] for row in values]


def test_ions_are_selected_counted_and_never_guessed(tmp_path: Path, read: Any) -> None:
    rows = rows_of("omol25")
    path = written(tmp_path / "a.aselmdb", rows)
    _, quarantine = read("ase_db", path)
    assert quarantine.remarks == {"charge or spin in the file, not read": 2}
    keys = {"charge_key": "charge", "spin_key": "spin"}
    del rows[0]["data"]["charge"]
    found, _ = read("ase_db", written(tmp_path / "b.aselmdb", rows), **keys)
    assert np.isnan(found.charge).tolist() == [True, False, False]
    seen = look(path)
    assert seen.states == {
        "charge +1, multiplicity 2": 1, "charge 0, multiplicity 1": 1, "charge 0, multiplicity 3": 1,
    }  # fmt: skip
    assert "charge_key: charge" in seen.recipe


def test_rows_whose_arrays_are_damaged_are_left_out_alone(tmp_path: Path, read: Any) -> None:
    rows = rows_of("omc25")
    path = written(tmp_path / "a.aselmdb", rows)
    for key, value in {
        "positions": {"__ndarray__": [[3, 3], "float64", [0.0, 1.0]]},
        "numbers": {"__ndarray__": [[3], "int64", [8, 1, "H"]]},
        "forces": {"__ndarray__": [[2, 3], "float64", [0.0] * 6]},
    }.items():
        broken = json.loads(encode(rows[0])) | {key: value}
        with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as entries:
            entries.put(b"1", zlib.compress(json.dumps(broken).encode()))
        found, quarantine = read("ase_db", path)
        assert found.row.tolist() == [3]
        assert quarantine.total == 1
