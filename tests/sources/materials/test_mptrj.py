"""MPtrj: units and signs, nulls, ragged rows, bare NaN, periodic flags, partial occupancy."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.errors import RamifyError
from tests.corpora import ELEMENTS, HELD, stated_energies

EV_PER_A3_PER_GPA = 0.006241509074  # 1 GPa in eV/Å³: 1e9 / 1.602176634e-19 * 1e-30
MATRIX = [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 0.0, 5.0]]


@pytest.fixture
def frame(crystal: Any) -> dict[str, Any]:
    return {
        "structure": crystal(["Na", "Cl"], [[0.1, 0.2, 0.3], [4.5, 2.0, 2.5]], MATRIX, pbc=[True, True, True]),
        "uncorrected_total_energy": -6.5,
        "corrected_total_energy": -7.5,
        "energy_per_atom": -3.75,
        "force": [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]],
        "stress": [[100.0, 1.0, 2.0], [1.0, 50.0, 3.0], [2.0, 3.0, -10.0]],
        "magmom": None,
        "bandgap": 5.1,
        "mp_id": "mp-1",
    }


def write(path: Path, *frames: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"mp-1": {f"mp-7-1-{i}": frame for i, frame in enumerate(frames)}}))
    return path


def test_units_signs_and_names(tmp_path: Path, read: Any, frame: dict[str, Any]) -> None:
    found, quarantine = read("mptrj", write(tmp_path / "mp.json", frame))
    assert quarantine.total == 0
    assert found.energy.tolist() == [-6.5]
    assert found.numbers.tolist() == [11, 17]
    np.testing.assert_array_equal(found.positions, [[0.1, 0.2, 0.3], [4.5, 2.0, 2.5]])
    np.testing.assert_array_equal(found.forces[1], [-0.1, -0.2, -0.3])
    np.testing.assert_array_equal(found.cell, [MATRIX])
    # 100 kBar in VASP's sign is a compressed crystal: -10 GPa with tension positive
    assert found.stress[0, 0, 0] == pytest.approx(-10 * EV_PER_A3_PER_GPA, rel=1e-7)
    assert found.stress[0, 2, 2] == pytest.approx(1 * EV_PER_A3_PER_GPA, rel=1e-7)
    np.testing.assert_array_equal(found.stress[0], found.stress[0].T)
    assert found.name(0) == "mp.json/mp-1/mp-7-1[0]"
    assert found.group_names == ("mp-1",)


def test_corrected_energy_is_the_total(tmp_path: Path, read: Any, frame: dict[str, Any]) -> None:
    found, _ = read("mptrj", write(tmp_path / "mp.json", frame), energy="corrected")
    assert found.energy.tolist() == [-7.5]


def test_xyz_counts_where_abc_differs_and_abc_where_there_is_no_xyz(
    tmp_path: Path, read: Any, frame: dict[str, Any]
) -> None:
    frame["structure"]["sites"][0]["abc"] = [0.5, 0.5, 0.5]
    found, _ = read("mptrj", write(tmp_path / "mp.json", frame))
    np.testing.assert_array_equal(found.positions[0], [0.1, 0.2, 0.3])
    for site in frame["structure"]["sites"]:
        del site["xyz"]
    found, _ = read("mptrj", write(tmp_path / "mp.json", frame))
    np.testing.assert_allclose(found.positions, [[2.5, 2.0, 2.5], [4.5, 2.0, 2.5]], atol=1e-12)


@pytest.mark.parametrize(("pbc", "expected"), [(None, [1, 1, 1]), ([True, True, False], [1, 1, 0])])
def test_periodic_flags(tmp_path: Path, read: Any, frame: dict[str, Any], pbc: Any, expected: list[int]) -> None:
    del frame["structure"]["lattice"]["pbc"]
    if pbc:
        frame["structure"]["lattice"]["pbc"] = pbc
    found, _ = read("mptrj", write(tmp_path / "mp.json", frame))
    assert found.pbc.tolist() == [[bool(b) for b in expected]]


def spoil(frame: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    spoiled = copy.deepcopy(frame)
    *keys, last = [int(k) if k.isdigit() else k for k in path.split(".")]
    inner: Any = spoiled
    for key in keys:
        inner = inner[key]
    inner[last] = value
    return spoiled


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("force.1", [0.009], "malformed forces"),  # a ragged row
        ("force.1", [0.1, None, 0.3], "malformed forces"),
        ("force.1", [0.1, float("nan"), 0.3], "non-finite label"),
        ("force", [[0.0, 0.0, 0.0]], "malformed forces"),
        ("force", None, "malformed forces"),
        ("force.1", None, "malformed forces"),
        ("uncorrected_total_energy", None, "label not computed"),
        ("uncorrected_total_energy", float("nan"), "non-finite label"),
        ("stress.0", [1.0, 2.0], "malformed stress"),
        ("stress.0.0", None, "malformed stress"),
        ("stress", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "malformed stress"),
        ("structure.sites.0.species.0.occu", 0.5, "partial occupancy"),
        (
            "structure.sites.0.species",
            [{"element": "Na", "occu": 0.5}, {"element": "K", "occu": 0.5}],
            "partial occupancy",
        ),
        ("structure.sites.0.species.0.element", "X0+", "unknown element"),
        ("structure.sites.0.xyz", [0.0, 0.0], "malformed structure"),
        ("structure.sites.0.xyz", [0.0, float("nan"), 0.0], "malformed structure"),
        ("structure.sites", [], "malformed structure"),
        ("structure.lattice", {}, "malformed structure"),
        ("structure.lattice.matrix", MATRIX[:2], "malformed structure"),
        ("structure.lattice.pbc", [True], "malformed structure"),
        ("structure", None, "malformed structure"),
    ],
)
def test_spoiled_record_is_left_out_alone(
    tmp_path: Path, read: Any, frame: dict[str, Any], path: str, value: Any, reason: str
) -> None:
    file = write(tmp_path / "mp.json", frame, spoil(frame, path, value), frame)  # json.dumps writes a bare NaN
    found, quarantine = read("mptrj", file)
    assert quarantine.counts == {reason: 1}
    assert found.row.tolist() == [0, 2]
    np.testing.assert_array_equal(found.forces[2:], frame["force"])
    np.testing.assert_allclose(found.stress[0], found.stress[1])


def test_nan_and_null_where_nothing_is_read_are_harmless(tmp_path: Path, read: Any, frame: dict[str, Any]) -> None:
    frame |= {"bandgap": float("nan"), "magmom": None, "energy_per_atom": None, "stress": None}
    found, quarantine = read("mptrj", write(tmp_path / "mp.json", frame, frame))
    assert len(found) == 2
    assert quarantine.total == 0
    assert np.isnan(found.stress).all()


def test_other_format_is_named(corpora: Path, read: Any) -> None:
    with pytest.raises(RamifyError, match="set `format: alexandria`"):
        read("mptrj", corpora / "alexandria_mini/alexandria_mini_000.json.bz2")


def test_embedded_corpus(corpora: Path, read: Any, slope: Any) -> None:
    path = corpora / "mptrj_mini/MPtrj_mini.json"
    found, quarantine = read("mptrj", path)
    assert len(found) == HELD["mptrj_mini"].structures
    assert quarantine.total == 0
    assert len(found.group_names) == HELD["mptrj_mini"].systems
    assert len(set(found.numbers.tolist())) == len(ELEMENTS["mptrj_mini"].split())
    assert found.pbc.all()
    per_atom = found.energy / found.n_atoms
    assert (per_atom.min(), per_atom.max()) == pytest.approx(stated_energies("mptrj_mini"), abs=5.1e-4)
    assert slope(found) == pytest.approx(1.0, abs=0.02)
    frames = [frame for material in json.loads(path.read_text()).values() for frame in material.values()]
    stress = np.array([frame["stress"] for frame in frames])
    np.testing.assert_allclose(found.stress, stress * -0.1 * EV_PER_A3_PER_GPA, rtol=1e-7)
    np.testing.assert_array_equal(found.forces, np.concatenate([frame["force"] for frame in frames]))


def test_stress_sign_against_the_energy(corpora: Path, read: Any) -> None:
    """The frames of a crystal that are squeezed most have the most negative trace: tension is positive."""
    found, _ = read("mptrj", corpora / "mptrj_mini/MPtrj_mini.json")
    volume = np.abs(np.linalg.det(found.cell)) / found.n_atoms
    pressure = -np.trace(found.stress, axis1=1, axis2=2) / 3
    right = 0
    for group in range(len(found.group_names)):
        of = np.flatnonzero(found.group == group)
        small, large = of[np.argmin(volume[of])], of[np.argmax(volume[of])]
        right += pressure[small] > pressure[large]
    assert right > 0.9 * len(found.group_names)


@pytest.mark.parametrize("pbc", [["T", "T", "F"], "TTF", [True, True], [True, True, 2], [None, True, True]])
def test_periodic_flags_that_are_no_flags(tmp_path: Path, read: Any, frame: dict[str, Any], pbc: Any) -> None:
    """A text such as "F" would count as true."""
    broken = copy.deepcopy(frame)
    broken["structure"]["lattice"]["pbc"] = pbc
    found, quarantine = read("mptrj", write(tmp_path / "mp.json", frame, broken))
    assert found.row.tolist() == [0]
    assert quarantine.counts == {"malformed structure": 1}


def test_byte_order_mark(tmp_path: Path, read: Any, frame: dict[str, Any]) -> None:
    path = write(tmp_path / "mp.json", frame)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read("mptrj", path)[0]) == 1
