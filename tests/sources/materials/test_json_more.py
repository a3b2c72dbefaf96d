"""MatPES, FitSNAP and JARVIS, in the layouts of their publications."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.sources.formats.materials import jarvis

KBAR = -6.241509074e-4  # eV/Å³, VASP's sign turned round
MATRIX = [[4.0, 0.0, 0.0], [0.5, 5.0, 0.0], [0.0, 0.0, 6.0]]


def matpes(crystal: Any, rows: int = 6) -> list[dict[str, Any]]:
    """Records as matpes.ai/dataset describes them."""
    rng, made = np.random.default_rng(0), []
    for i in range(rows):
        made.append(
            {
                "matpes_id": f"matpes-2025_{i}",
                "functional": "PBE",
                "structure": crystal(["Si", "O"], rng.normal(0, 2, (2, 3)).tolist(), MATRIX),
                "energy": -10.0 - i,
                "cohesive_energy_per_atom": -3.0,
                "forces": rng.normal(0, 1, (2, 3)).tolist(),
                "stress": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
                "provenance": {"original_mp_id": f"mp-{i % 2}", "md_step": i},
                "bandgap": 0.0,
            }
        )
    return made


def test_matpes(tmp_path: Path, read: Any, crystal: Any) -> None:
    made, path = matpes(crystal), tmp_path / "MatPES-PBE-2025.1.json.gz"
    made[4]["stress"] = [[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]]
    path.write_bytes(gzip.compress(json.dumps(made).encode()))
    found, quarantine = read("matpes", path)
    assert quarantine.total == 0
    assert found.energy.tolist() == [-10.0 - i for i in range(6)]
    np.testing.assert_array_equal(found.forces, np.concatenate([m["forces"] for m in made]))
    np.testing.assert_allclose(found.stress[0], np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]]) * KBAR, rtol=1e-7)
    np.testing.assert_allclose(found.stress[4], np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]]) * KBAR, rtol=1e-7)
    assert [found.group_names[g] for g in found.group] == ["mp-0", "mp-1"] * 3


def test_matpes_traps(tmp_path: Path, read: Any, crystal: Any) -> None:
    made = matpes(crystal)
    made[1]["forces"], made[2]["energy"], made[3]["stress"] = None, "x", [1.0, 2.0]
    made[4]["forces"][0] = [1.0]
    (tmp_path / "a.json").write_text(json.dumps(made))
    found, quarantine = read("matpes", tmp_path / "a.json")
    assert found.row.tolist() == [0, 5]
    assert quarantine.counts == {"malformed forces": 2, "malformed energy": 1, "malformed stress": 1}
    (tmp_path / "a.json").write_text(json.dumps([*matpes(crystal), matpes(crystal)[0] | {"functional": "r2SCAN"}]))
    with pytest.raises(RamifyError, match="two functionals, PBE and r2SCAN"):
        read("matpes", tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"structure": {}}]')
    with pytest.raises(RamifyError, match="not of format 'matpes'"):
        read("matpes", tmp_path / "a.json")


def fitsnap(stress: str = "bar", header: bool = True, **changes: Any) -> str:
    """One configuration in the layout of FitSNAP's examples (examples/Ta_Linear_JCP2014/JSON)."""
    data = {
        "Stress": [[-100.0, 10.0, 0.0], [10.0, -200.0, 0.0], [0.0, 0.0, 300.0]],
        "Positions": [[0.0, 0.0, 0.0], [1.6, 1.6, 1.7]],
        "Energy": -23.5,
        "AtomTypes": ["Ta", "Ta"],
        "Lattice": [[3.2, 0.0, 0.0], [0.1, 3.3, 0.0], [0.0, 0.0, 3.4]],
        "NumAtoms": 2,
        "Forces": [[0.5, 0.0, -0.25], [-0.5, 0.0, 0.25]],
    } | changes
    styles = {
        "EnergyStyle": "electronvolt",
        "ForcesStyle": "electronvoltperangstrom",
        "LatticeStyle": "angstrom",
        "PositionsStyle": "angstrom",
        "StressStyle": stress,
    }
    text = json.dumps({"Dataset": {"Data": [data], "Label": "Displaced_BCC", **styles}})
    return ("# file ./x.json\n" if header else "") + text


@pytest.mark.parametrize(("unit", "factor"), [("bar", 6.241509074e-7), ("kB", 6.241509074e-4), ("GPa", 6.241509074e-3)])
@pytest.mark.parametrize("header", [True, False])
def test_fitsnap(tmp_path: Path, read: Any, unit: str, factor: float, header: bool) -> None:
    (tmp_path / "Displaced_BCC").mkdir()
    path = tmp_path / "Displaced_BCC/A_1.json"
    path.write_text(fitsnap(unit, header), encoding="utf-8-sig")
    found, quarantine = read("fitsnap", path)
    assert quarantine.total == 0
    assert found.energy.tolist() == [-23.5]
    np.testing.assert_array_equal(found.forces, [[0.5, 0.0, -0.25], [-0.5, 0.0, 0.25]])
    np.testing.assert_array_equal(found.cell[0], [[3.2, 0.0, 0.0], [0.1, 3.3, 0.0], [0.0, 0.0, 3.4]])
    np.testing.assert_allclose(found.stress[0, [0, 1, 2], [0, 0, 2]], np.array([100, -10, -300]) * factor, rtol=1e-7)
    assert found.pbc.all()
    assert found.name(0) == "Displaced_BCC/A_1.json[0]"
    assert found.group_names == ("Displaced_BCC",)
    found, _ = read("fitsnap", path, stress_sign=1)
    assert found.stress[0, 0, 0] == pytest.approx(-100 * factor)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Energy": "None"}, "malformed energy"),
        ({"Energy": None}, "label not computed"),
        ({"Forces": [[0.5, 0.0], [1.0, 0.0]]}, "malformed forces"),
        ({"AtomTypes": ["Ta1", "Ta"]}, "malformed structure"),
        ({"Stress": [[1.0, 2.0, 3.0]]}, "malformed stress"),
        ({"Lattice": [1.0, 2.0, 3.0]}, "malformed structure"),
    ],
)
def test_fitsnap_spoiled(tmp_path: Path, read: Any, changes: dict[str, Any], reason: str) -> None:
    (tmp_path / "a.json").write_text(fitsnap(**changes))
    found, quarantine = read("fitsnap", tmp_path / "a.json")
    assert len(found) == 0
    assert quarantine.counts == {reason: 1}


def test_fitsnap_wrong_files(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "a.json"
    for text, message in (
        (fitsnap()[:-20], "truncated"),
        (fitsnap("furlong"), "StressStyle 'furlong'"),
        (fitsnap().replace("electronvoltperangstrom", "hartreeperbohr"), "ForcesStyle 'hartreeperbohr'"),
        ('{"entries": []}', "not of format 'fitsnap'"),
        ("[1]", "not of format 'fitsnap'"),
        ("hello", "not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(RamifyError, match=message):
            read("fitsnap", path)


def records(energies: list[float], sizes: list[int], symbol: str = "Cu", **more: Any) -> list[dict[str, Any]]:
    rng, made = np.random.default_rng(0), []
    for i, (energy, size) in enumerate(zip(energies, sizes, strict=True)):
        atoms = {
            "lattice_mat": MATRIX,
            "coords": rng.random((size, 3)).tolist(),
            "elements": [symbol] * size,
            "cartesian": False,
        }
        stresses = [[10.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 30.0]]
        forces = rng.normal(0, 1, (size, 3)).tolist()
        made.append({"jid": f"JVASP-{i // 2}_{i}", "atoms": atoms, "total_energy": energy, "forces": forces} | more)
        made[-1]["stresses"] = stresses
    return made


@pytest.mark.parametrize(
    ("energies", "sizes", "per_atom"),
    [
        ([-3.7, -3.6, -3.72], [1, 4, 8], True),  # the same material in cells of several sizes
        ([-3.7, -14.9, -29.7], [1, 4, 8], False),
        ([-3.7] * 3, [32] * 3, True),  # one size: as a total it would be 0.1 eV/atom
        ([-118.0] * 3, [32] * 3, False),  # no solid is bound by 118 eV/atom
    ],
)
def test_jarvis_totals_or_per_atom(
    tmp_path: Path, read: Any, energies: list[float], sizes: list[int], per_atom: bool
) -> None:
    path = tmp_path / "id_prop.json"
    path.write_text(json.dumps(records(energies, sizes)))
    assert jarvis.measured_per_atom(path) == per_atom
    for name in ("jarvis", "mlearn"):
        found, _ = read(name, path)
        np.testing.assert_allclose(found.energy, np.array(energies) * (np.array(sizes) if per_atom else 1))
        found, _ = read(name, path, energy_is_per_atom=not per_atom)
        np.testing.assert_allclose(found.energy, np.array(energies) * (1 if per_atom else np.array(sizes)))


def test_jarvis_asks_where_the_file_does_not_tell(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "id_prop.json"
    path.write_text(json.dumps(records([-7.0, -7.1], [2, 2])))
    for name in ("jarvis", "mlearn"):
        with pytest.raises(RamifyError, match=r"(.|\n)*`energy_is_per_atom: true` or `energy_is_per_atom: false`"):
            read(name, path)


def test_jarvis_geometry_groups_and_stress(tmp_path: Path, read: Any) -> None:
    made, path = records([-3.7, -14.9, -29.7], [1, 4, 8]), tmp_path / "a.json"
    path.write_text(json.dumps(made))
    found, quarantine = read("jarvis", path)
    np.testing.assert_allclose(found.positions, np.concatenate([m["atoms"]["coords"] for m in made]) @ MATRIX)
    np.testing.assert_array_equal(found.forces, np.concatenate([m["forces"] for m in made]))
    assert [found.group_names[g] for g in found.group] == ["JVASP-0", "JVASP-0", "JVASP-1"]
    assert np.isnan(found.stress).all()
    assert list(quarantine.remarks.values()) == [3]
    found, quarantine = read("jarvis", path, stress="vasp-kbar")
    np.testing.assert_allclose(found.stress[0], np.diag([10, 20, 30]) * KBAR, rtol=1e-7)
    assert quarantine.remarks == {}
    made[1]["atoms"]["coords"] = made[1]["atoms"]["coords"][:2]
    made[2] = {"jid": "x"}
    path.write_text(json.dumps(made))
    found, quarantine = read("jarvis", path, energy_is_per_atom=False)
    assert quarantine.counts == {"malformed structure": 2}


def test_real_copies_of_alignn_are_per_atom(shared: Path) -> None:
    for name in ("Cu", "Ni"):
        assert jarvis.measured_per_atom(shared / f"data/mlearn_pbe_vasp/{name}_alignn_id_prop.json")


@pytest.mark.parametrize("name", ["matpes", "jarvis", "fitsnap"])
def test_damaged_files_give_messages(
    tmp_path: Path, read: Any, reads_or_says_why: Any, crystal: Any, name: str
) -> None:
    text = {
        "matpes": lambda: json.dumps(matpes(crystal)),
        "jarvis": lambda: json.dumps(records([-3.7, -14.9, -29.7], [1, 4, 8])),
        "fitsnap": fitsnap,
    }[name]().encode()
    keys = {"energy_is_per_atom": False} if name == "jarvis" else {}
    path, rng = tmp_path / "a.json", np.random.default_rng(0)
    for size in rng.integers(1, len(text) - 1, 30).tolist():
        path.write_bytes(text[:size])
        with pytest.raises(RamifyError, match=r"\n  fix: "):
            read(name, path, **keys)
    for at in rng.integers(0, len(text), 60).tolist():
        path.write_bytes(text[:at] + bytes([text[at] ^ 0x08]) + text[at + 1 :])
        reads_or_says_why(name, path, **keys)
