"""Alexandria in both shapes, and real entries of the public release."""

import bz2
import json
import pickle
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from ramify.errors import RamifyError
from tests.corpora import ELEMENTS, HELD, stated_energies

EV_PER_A3_PER_GPA = 0.006241509074
MATRIX = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 18.0]]
FORCES = [[0.01, 0.02, 0.03], [-0.01, -0.02, -0.03]]
KBAR = [[10.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 30.0]]


def pack(path: Path, data: Any) -> Path:
    text = json.dumps(data)
    path.write_bytes(bz2.compress(text.encode()) if path.suffix == ".bz2" else text.encode())
    return path


@pytest.fixture
def entry(crystal: Any) -> dict[str, Any]:
    properties = [{"magmom": 0.0, "forces": f} for f in FORCES]
    return {
        "@class": "ComputedStructureEntry",
        "energy": -9.0,
        "correction": 0.0,
        "entry_id": "agm1",
        "data": {
            "mat_id": "agm001",
            "energy_total": -9.5,
            "energy_corrected": -9.9,
            "e_form": -0.5,
            "stress": KBAR,
        },
        "structure": crystal(["Ac", "O"], [[0.0, 0.0, 0.0], [1.5, 1.5, 9.0]], MATRIX, properties=properties),
    }


@pytest.fixture
def step(crystal: Any) -> dict[str, Any]:
    structure = crystal(["Ac", "O"], [[0.0, 0.0, 0.0], [1.5, 1.5, 9.0]], MATRIX)
    return {"structure": structure, "energy": -9.5, "forces": FORCES, "stress": KBAR}


@pytest.mark.parametrize("ending", [".json", ".json.bz2"])
def test_entries(tmp_path: Path, read: Any, entry: dict[str, Any], ending: str) -> None:
    child = json.loads(json.dumps(entry))
    child["data"] |= {"mat_id": "agm002", "parent_id": "agm001"}
    found, quarantine = read("alexandria", pack(tmp_path / f"a{ending}", {"entries": [entry, child]}))
    assert quarantine.total == 0
    assert found.energy.tolist() == [-9.5, -9.5]  # energy_total, not e_form and not corrected
    np.testing.assert_array_equal(found.forces[:2], FORCES)
    np.testing.assert_allclose(np.diag(found.stress[0]), [-1.0 * EV_PER_A3_PER_GPA * k for k in (1, 2, 3)], rtol=1e-7)
    assert found.group_names == ("agm001",)
    assert found.name(1) == f"a{ending}/entries[1]"


@pytest.mark.parametrize("ending", [".json", ".json.bz2"])
def test_paths(tmp_path: Path, read: Any, step: dict[str, Any], ending: str) -> None:
    later = step | {"energy": -9.6}
    data = {
        "agm1": [{"functional": "PBE", "steps": [step, later]}, {"functional": "PBE", "steps": [later]}],
        "agm2": [],
        "agm3": [{"functional": "PBE", "steps": [step]}],
    }
    found, quarantine = read("alexandria", pack(tmp_path / f"p{ending}", data))
    assert quarantine.total == 0
    assert found.energy.tolist() == [-9.5, -9.6, -9.6, -9.5]
    names = [found.name(i) for i in range(4)]
    assert names == [f"p{ending}/{x}" for x in ("agm1/run0[0]", "agm1/run0[1]", "agm1/run1[0]", "agm3/run0[0]")]
    assert [found.group_names[g] for g in found.group] == ["agm1"] * 3 + ["agm3"]
    np.testing.assert_allclose(np.diag(found.stress[0]), [-1.0 * EV_PER_A3_PER_GPA * k for k in (1, 2, 3)], rtol=1e-7)


@pytest.mark.parametrize(
    ("forces", "reason"),
    [
        ([[0.1, 0.2, 0.3], [0.00943903]], "malformed forces"),  # as in agm005676148 of alex_go_aad_020
        ([[0.1, None, 0.3], [0.1, 0.2, 0.3]], "malformed forces"),
        ([[0.1, float("nan"), 0.3], [0.1, 0.2, 0.3]], "non-finite label"),
        (None, "malformed forces"),
    ],
)
def test_spoiled_forces_of_a_step(tmp_path: Path, read: Any, step: dict[str, Any], forces: Any, reason: str) -> None:
    data = {"agm1": [{"steps": [step, step | {"forces": forces}, step]}]}
    found, quarantine = read("alexandria", pack(tmp_path / "p.json", data))
    assert found.row.tolist() == [0, 2]
    assert quarantine.counts == {reason: 1}


def test_spoiled_entries(tmp_path: Path, read: Any, entry: dict[str, Any]) -> None:
    half = json.loads(json.dumps(entry))
    del half["structure"]["sites"][1]["properties"]["forces"]
    null = json.loads(json.dumps(entry))
    null["structure"]["sites"][1]["properties"]["forces"] = [None, 0.0, 0.0]
    nameless = json.loads(json.dumps(entry)) | {"entry_id": None}
    del nameless["data"]["mat_id"]
    data = {"entries": [entry, half, null, nameless, {"note": "no structure"}]}
    found, quarantine = read("alexandria", pack(tmp_path / "a.json", data))
    assert len(found) == 1
    assert quarantine.counts == {"malformed forces": 2, "malformed structure": 2}


def test_entries_without_forces_have_energies(tmp_path: Path, read: Any, entry: dict[str, Any]) -> None:
    for site in entry["structure"]["sites"]:
        del site["properties"]
    del entry["data"]["energy_total"]
    entry["data"]["stress"] = None
    found, quarantine = read("alexandria", pack(tmp_path / "a.json", {"entries": [entry]}))
    assert quarantine.total == 0
    assert found.energy.tolist() == [-9.0]
    assert np.isnan(found.forces).all()
    assert np.isnan(found.stress).all()


def test_other_format_is_named(corpora: Path, read: Any) -> None:
    with pytest.raises(RamifyError, match="set `format: mptrj`"):
        read("alexandria", corpora / "mptrj_mini/MPtrj_mini.json")


def test_embedded_corpus(corpora: Path, read: Any, slope: Any) -> None:
    found, quarantine = read("alexandria", corpora / "alexandria_mini/alexandria_mini_000.json.bz2")
    assert len(found) == HELD["alexandria_mini"].structures
    assert quarantine.total == 0
    assert len(found.group_names) == HELD["alexandria_mini"].systems
    assert len(set(found.numbers.tolist())) == len(ELEMENTS["alexandria_mini"].split())
    per_atom = found.energy / found.n_atoms
    assert (per_atom.min(), per_atom.max()) == pytest.approx(stated_energies("alexandria_mini"), abs=5.1e-4)
    assert slope(found) == pytest.approx(1.0, abs=0.02)


class _ArraysOnly(pickle.Unpickler):
    """The devset's pickles need two names of numpy; nothing else may be loaded."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(shape, order=order)
        raise pickle.UnpicklingError(f"{module}.{name}")


def test_real_entries(shared: Path, tmp_path: Path, read: Any) -> None:
    """100 original structure dictionaries of the release, put back into the release's layout."""
    import io

    entries, forces = [], []
    with (
        lmdb.open(
            str(shared / "data/alexandria_pbe_devset/data_000.lmdb"), subdir=False, readonly=True, lock=False
        ) as env,
        env.begin() as transaction,
    ):
        for _, value in transaction.cursor():
            row = _ArraysOnly(io.BytesIO(value)).load()
            if not isinstance(row, dict):
                continue
            energy = row["targets"]["regression"]["energy_total"]
            data = {"mat_id": row["entry_id"], "energy_total": float(energy)}
            entries.append({"structure": row["structure"], "energy": None, "data": data})
            forces.append(row["force"])
    found, quarantine = read("alexandria", pack(tmp_path / "alexandria_000.json.bz2", {"entries": entries}))
    assert len(found) == 100
    assert quarantine.total == 0
    assert found.pbc.all()
    per_atom = found.energy / found.n_atoms
    expected = (-5.6106, -4.0756, -2.4728)
    assert (per_atom.min(), np.median(per_atom), per_atom.max()) == pytest.approx(expected, abs=1e-4)
    np.testing.assert_array_equal(found.forces, np.concatenate(forces))
    largest = np.maximum.reduceat(np.linalg.norm(found.forces, axis=1), found.offsets[:-1])
    assert np.median(largest) == pytest.approx(0.0045, abs=1e-4)
    assert (found.n_atoms.min(), np.median(found.n_atoms), found.n_atoms.max()) == (1, 16, 30)
