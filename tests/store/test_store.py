"""Stores return the structures that were written, and damaged ones are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase.units import Hartree
from h5py import File

from ramify.errors import RamifyError
from ramify.files import sha256
from ramify.inspect import describe
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.references import reference_energy
from ramify.sources.formats import formats
from ramify.store.manifest import Manifest
from ramify.store.store import Store
from ramify.structures import Split
from tests.corpora import HELD

KEPT = HELD["ani1x_mini"].structures


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the ANI-1x corpus; not to be changed."""
    stores = tmp_path_factory.mktemp("stores")
    options = formats()["ani1x"].options.model_validate({"format": "ani1x", "path": str(FILES["ani1x_mini"])})
    prepare_dataset("ani", options, stores, base=Path())
    return stores / "ani"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """A store to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "ani"))


def test_a_store_without_remarks_is_described(prepared: Path) -> None:
    """Keys that the manifest leaves out at their default are shown all the same."""
    assert "remarks" not in json.loads((prepared / "manifest.json").read_text())
    title, facts = describe(prepared, verify=True)
    assert title == f"store {prepared}"
    assert facts["remarks"] == {}
    assert facts["labels"] == {"energy": KEPT, "forces": KEPT, "stress": 0}


def test_a_store_shows_itself_in_a_notebook(prepared: Path) -> None:
    with Store.open(prepared) as store:
        shown = store._repr_html_()
        for split, counts in store.manifest.splits.items():
            assert f"<td>{split}</td><td>{counts.structures:,}</td><td>{counts.atoms:,}</td>" in shown
        assert "C, H, N, O" in shown or "H, C, N, O" in shown


def test_everything_comes_back(prepared: Path) -> None:
    """Against the original file by h5py: float32 columns bit for bit, energies to the last digit of float64."""
    store = Store.open(prepared, verify=True)
    everything = store.take(range(len(store)))
    rows = 0
    with File(FILES["ani1x_mini"]) as file:
        for k in range(len(store)):
            origin = everything.origin_names[everything.origin[k]]
            group, row = file[origin.split("/", 1)[1]], everything.row[k]
            a, b = everything.offsets[k : k + 2]
            assert everything.group_names[everything.group[k]] == group.name.strip("/")
            np.testing.assert_array_equal(everything.numbers[a:b], group["atomic_numbers"][()])
            np.testing.assert_array_equal(everything.positions[a:b], group["coordinates"][row])
            forces = (group["wb97x_dz.forces"][row].astype(np.float64) * Hartree).astype(np.float32)
            np.testing.assert_array_equal(everything.forces[a:b], forces)
            assert everything.energy[k] == group["wb97x_dz.energy"][row] * Hartree
            rows += 1
    assert rows == store.manifest.structures == KEPT
    assert np.isnan(everything.stress).all()
    assert everything.positions.dtype == everything.forces.dtype == np.float32
    assert everything.energy.dtype == np.float64


def test_rows_can_be_taken_in_any_order(prepared: Path) -> None:
    store = Store.open(prepared)
    rows = np.random.default_rng(0).permutation(len(store))[:50]
    some, everything = store.take(rows), store.take(range(len(store)))
    expected = everything.take(rows)
    for column in ("n_atoms", "numbers", "positions", "forces", "energy", "cell", "pbc", "split", "group", "row"):
        np.testing.assert_array_equal(getattr(some, column), getattr(expected, column))
    assert [some.name(k) for k in range(50)] == [everything.name(int(r)) for r in rows]
    np.testing.assert_array_equal(store.n_atoms[rows], some.n_atoms)
    assert len(store.take([])) == 0


def test_splits_are_ranges(prepared: Path) -> None:
    store = Store.open(prepared)
    ranges = [store.range(name) for name in ("train", "val", "test")]
    assert [r.start for r in ranges] == [0, ranges[0].stop, ranges[1].stop]
    assert ranges[2].stop == len(store)
    groups = []
    for name, rows in zip(("train", "val", "test"), ranges, strict=True):
        part = store.take(rows)
        assert set(part.split) == {Split[name.upper()]}
        groups.append(set(part.group.tolist()))
        counts = store.manifest.splits[name]  # type: ignore[index]
        assert (counts.structures, counts.atoms) == (len(rows), int(part.n_atoms.sum()))
        assert counts.groups == len(groups[-1])
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    with pytest.raises(RamifyError, match="'tset' is not a split"):
        store.range("tset")


def test_references_by_atomic_number(prepared: Path) -> None:
    store = Store.open(prepared)
    assert np.flatnonzero(~np.isnan(store.references)).tolist() == [1, 6, 7, 8]
    assert store.references[6] == store.manifest.references.energies["C"]
    train = store.take(store.range("train"))
    residual = (train.energy - reference_energy(train, store.references)) / train.n_atoms
    assert np.abs(residual).mean() == pytest.approx(store.manifest.references.residual_mae, rel=1e-9)
    assert residual.std() == pytest.approx(store.manifest.statistics.energy_std, rel=1e-9)


def test_the_manifest_survives_json(prepared: Path) -> None:
    manifest = Store.open(prepared).manifest
    assert Manifest.model_validate(json.loads(manifest.model_dump_json())) == manifest
    assert set(manifest.columns) == {p.stem for p in prepared.glob("*.npy")}
    for name, column in manifest.columns.items():
        assert sha256(prepared / f"{name}.npy") == column.sha256


@pytest.mark.parametrize("column", ["positions", "energy", "n_atoms", "stress"])
def test_a_flipped_bit_is_found(copy: Path, column: str) -> None:
    path = copy / f"{column}.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)
    if column != "n_atoms":  # sizes are right, so only reading everything tells
        Store.open(copy)
    with pytest.raises(RamifyError, match=rf"{column}\.npy: damaged.*\n  fix: prepare the dataset again"):
        Store.open(copy, verify=True)


def test_damaged_names_are_found(copy: Path) -> None:
    path = copy / "names.json"
    path.write_text(path.read_text().replace("C2H2O1", "C2H2O2"))
    with pytest.raises(RamifyError, match=r"names\.json: damaged"):
        Store.open(copy, verify=True)
    path.write_text("{")
    store = Store.open(copy)
    with pytest.raises(RamifyError, match=r"names\.json: damaged"):
        store.take([0])


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_column_is_refused(copy: Path, cut: int) -> None:
    path = copy / "forces.npy"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(RamifyError, match=r"forces\.npy: damaged"):
        Store.open(copy)


def test_a_column_that_is_too_long_is_refused(copy: Path) -> None:
    with (copy / "row.npy").open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(RamifyError, match=r"row\.npy: damaged"):
        Store.open(copy)


def test_a_column_of_another_store_is_refused(copy: Path) -> None:
    np.save(copy / "energy.npy", np.zeros(7))
    with pytest.raises(
        RamifyError, match=rf"energy\.npy: damaged, holds float64 \(7,\) instead of float64 \({KEPT},\)"
    ):
        Store.open(copy)


def test_a_missing_column_is_refused(copy: Path) -> None:
    (copy / "cell.npy").unlink()
    with pytest.raises(RamifyError, match=r"cell\.npy: damaged or missing"):
        Store.open(copy)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"nothing: no store here\n  fix: run `ramify prepare"):
        Store.open(tmp_path / "nothing")


def change(copy: Path, **keys: object) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"version": 4}, r"version 4, this program reads up to 3\n  fix: update ramify"),
        ({"version": 1}, r"version 1, this program reads 2 to 3\n  fix: prepare the dataset again"),
        ({"version": 4, "new_key": 1}, "version 4"),
        ({"new_key": 1}, "damaged at 'new_key'"),
        ({"format": "ramify-checkpoint"}, "not the manifest of a store"),
        ({"splits": {}}, "damaged"),
        ({"columns": {}}, "columns in the manifest are not those of a store"),
    ],
)
def test_manifests_that_are_refused(copy: Path, keys: dict[str, object], message: str) -> None:
    change(copy, **keys)
    with pytest.raises(RamifyError, match=message):
        Store.open(copy)


def test_half_a_manifest(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(RamifyError, match="not readable as a manifest"):
        Store.open(copy)
