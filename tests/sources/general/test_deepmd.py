"""DeePMD's numpy sets, in the layout of its documentation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.prepare.inputs import source_files, with_companions
from ramify.sources.formats import formats
from ramify.structures import Split

ENDINGS = ("coord", "box", "energy", "force", "virial")


def system(folder: Path, sizes: tuple[int, ...] = (5, 3), seed: int = 0) -> dict[str, np.ndarray]:
    """Water, two molecules, some frames in each set (docs.deepmodeling.com, Formats of a system)."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n0\n1\n1\n")
    (folder / "type_map.raw").write_text("O\nH\n")
    whole: dict[str, list[np.ndarray]] = {name: [] for name in ENDINGS}
    for i, R in enumerate(sizes):
        arrays = {
            "coord": rng.normal(0, 3, (R, 18)),
            "box": np.tile(np.array([9.0, 0, 0, 1, 8, 0, 0, 0, 7]), (R, 1)) + rng.normal(0, 0.1, (R, 9)),
            "energy": rng.normal(-900, 1, R),
            "force": rng.normal(0, 1, (R, 18)),
            "virial": rng.normal(0, 5, (R, 9)),
        }
        (folder / f"set.{i:03d}").mkdir()
        for name, array in arrays.items():
            np.save(folder / f"set.{i:03d}/{name}.npy", array.astype(np.float32 if name == "coord" else np.float64))
            whole[name].append(array)
    return {name: np.concatenate(parts) for name, parts in whole.items()}


def test_sets(tmp_path: Path, read: Any) -> None:
    made = system(tmp_path / "water")
    found, quarantine = read("deepmd", tmp_path / "water/type.raw")
    assert quarantine.total == 0
    assert found.numbers.tolist() == [8, 1, 1, 8, 1, 1] * 8
    np.testing.assert_array_equal(found.energy, made["energy"])
    np.testing.assert_array_equal(found.forces, made["force"].reshape(-1, 3))
    np.testing.assert_allclose(found.positions, made["coord"].reshape(-1, 3), rtol=1e-6)
    np.testing.assert_array_equal(found.cell, made["box"].reshape(-1, 3, 3))
    volume = [abs(np.dot(c[0], np.cross(c[1], c[2]))) for c in made["box"].reshape(-1, 3, 3)]
    np.testing.assert_allclose(found.stress, -made["virial"].reshape(-1, 3, 3) / np.reshape(volume, (-1, 1, 1)))
    assert found.pbc.all()
    assert [found.name(i) for i in (0, 5)] == ["water/set.000[0]", "water/set.001[0]"]
    assert found.group_names == ("water",)


def test_without_cells(tmp_path: Path, read: Any) -> None:
    system(tmp_path / "gas")
    (tmp_path / "gas/nopbc").touch()
    found, quarantine = read("deepmd", tmp_path / "gas")
    assert not found.pbc.any()
    assert not found.cell.any()
    assert np.isnan(found.stress).all()
    assert quarantine.remarks == {"stress without a cell, left out": 8}


def test_mixed_types(tmp_path: Path, read: Any) -> None:
    made = system(tmp_path / "mixed", (4,))
    real = np.array([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, -1, -1], [1, -1, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0]])
    np.save(tmp_path / "mixed/set.000/real_atom_types.npy", real)
    found, quarantine = read("deepmd", tmp_path / "mixed")
    assert found.n_atoms.tolist() == [6, 4, 5]
    assert found.numbers[6:].tolist() == [1, 1, 8, 8, 1, 8, 8, 8, 8]
    forces = made["force"].reshape(4, 6, 3)
    np.testing.assert_array_equal(found.forces[6:10], forces[1, :4])
    np.testing.assert_array_equal(found.forces[10:], forces[2, [0, 2, 3, 4, 5]])
    assert quarantine.counts == {"malformed structure": 1}


def test_a_folder_stands_for_all_systems_in_it(tmp_path: Path) -> None:
    for name in ("a/x", "a/y", "b"):
        system(tmp_path / name, (2,))
    options = formats()["deepmd"].options.model_validate({"format": "deepmd", "path": ["a", "b"]})
    files = source_files("d", options, tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file, _ in files] == [
        "a/x/type.raw",
        "a/y/type.raw",
        "b/type.raw",
    ]
    listed = with_companions(options, files[:1])
    names = {file.relative_to(tmp_path / "a/x").as_posix() for file in listed}
    assert names == {"type.raw", "type_map.raw", *(f"set.000/{name}.npy" for name in ENDINGS)}
    starred = options.model_copy(update={"path": "*"})
    assert source_files("d", starred, tmp_path) == files
    assert {split for _, split in files} == {Split.NONE}
    (tmp_path / "c").mkdir()
    with pytest.raises(RamifyError, match=r"holds no type\.raw"):
        source_files("d", options.model_copy(update={"path": "c"}), tmp_path)


def test_elements_are_never_guessed(tmp_path: Path, read: Any) -> None:
    system(tmp_path / "w")
    (tmp_path / "w/type_map.raw").unlink()
    with pytest.raises(RamifyError, match=r"no type_map\.raw(.|\n)*type_map: \[O, H\]"):
        read("deepmd", tmp_path / "w")
    found, _ = read("deepmd", tmp_path / "w", type_map=["O", "H"])
    assert found.numbers[:3].tolist() == [8, 1, 1]
    (tmp_path / "w/type_map.raw").write_text("O Q")
    with pytest.raises(RamifyError, match=r"\['Q'\] are not element symbols"):
        read("deepmd", tmp_path / "w")
    with pytest.raises(RamifyError, match=r"\['O', 'Q'\], the recipe \['O', 'H'\]"):
        read("deepmd", tmp_path / "w", type_map=["O", "H"])
    (tmp_path / "w/type_map.raw").write_text("O")
    with pytest.raises(RamifyError, match=r"types \[0, 1\] do not fit the names \['O'\]"):
        read("deepmd", tmp_path / "w")


@pytest.mark.parametrize("name", [*ENDINGS])
def test_arrays_that_are_missing_or_of_another_size(tmp_path: Path, read: Any, name: str) -> None:
    system(tmp_path / "w")
    file = tmp_path / f"w/set.001/{name}.npy"
    whole = file.read_bytes()
    np.save(file, np.load(file)[:, :-1] if name != "energy" else np.zeros(5))
    with pytest.raises(RamifyError, match=r"has shape|do not fit"):
        read("deepmd", tmp_path / "w")
    for size in (0, 40, len(whole) - 8):
        file.write_bytes(whole[:size])
        with pytest.raises(RamifyError, match=f"{name}.npy cannot be read"):
            read("deepmd", tmp_path / "w")
    file.unlink()
    if name in ("coord", "box", "energy"):
        with pytest.raises(RamifyError, match=rf"has no .*{name}\.npy"):
            read("deepmd", tmp_path / "w")
    else:
        found, _ = read("deepmd", tmp_path / "w")
        assert len(found) == 8
