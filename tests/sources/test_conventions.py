"""One crystal in the layouts of eight formats: energies, forces and stresses that fit one another, and their traps.

Labels are those of ASE's EMT, written with the unit and sign that each format documents. What is read is compared with
finite differences of the energies that are read, so that no factor of the package enters.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.units import create_units
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.sources.formats.materials.vasp import LEARNED
from tests.sources.materials import test_json_more, test_oc20

KBAR = 1602.176634
"""kBar in one eV/Å³ (CODATA: e = 1.602176634e-19 C)."""
STEP = 1e-4
UNREAD = "charge or spin in the file, not read"


def strained() -> tuple[list[Atoms], NDArray[np.float64], NDArray[np.float64]]:
    """A crystal, strained by -ε and ε, displaced by -δ and δ; with ε and δ, in units of `STEP`."""
    rng = np.random.default_rng(5)
    first = bulk("Cu", cubic=True)
    first.set_cell(first.cell @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    first.rattle(0.1, seed=3)
    strain, moved = rng.normal(size=(3, 3)), rng.normal(size=(4, 3))
    strain = (strain + strain.T) / 2
    images = [first]
    for sign in (-1, 1):
        images.append(first.copy())
        images[-1].set_cell(first.cell @ (np.eye(3) + sign * STEP * strain), scale_atoms=True)
    for sign in (-1, 1):
        images.append(first.copy())
        images[-1].positions += sign * STEP * moved
    for atoms in images:
        atoms.calc = EMT()
    return images, strain, moved


def stress(atoms: Atoms) -> NDArray[np.float64]:
    """(3, 3) eV/Å³, tension positive."""
    return np.asarray(atoms.get_stress(voigt=False))


def number_rows(array: NDArray[np.float64]) -> str:
    return "".join(f"<v> {' '.join(f'{x:.16e}' for x in row)} </v>\n" for row in array)


def vasprun(path: Path, images: list[Atoms], *, parameters: str = "") -> None:
    """The layout of vasprun.xml; kB with compression positive."""

    def block(name: str, array: Any) -> str:
        return f'<varray name="{name}">\n{number_rows(np.asarray(array))}</varray>\n'

    def geometry(atoms: Atoms) -> str:
        basis = block("basis", atoms.cell.array)
        return f"<crystal>\n{basis}</crystal>\n{block('positions', atoms.get_scaled_positions(wrap=False))}"

    text = f"<modeling>\n<kpoints>\n</kpoints>\n<parameters>\n{parameters}</parameters>\n<atominfo>\n"
    text += '<array name="atoms"><set>' + "<rc><c>Cu</c><c>1</c></rc>" * 4 + "</set></array>\n"
    text += '<array name="atomtypes"><set><rc><c>4</c><c>Cu</c><c>63.5</c><c>11.0</c><c>PAW</c></rc></set></array>\n'
    text += f'</atominfo>\n<structure name="initialpos">\n{geometry(images[0])}</structure>\n'
    for atoms in images:
        energy = f'<energy><i name="e_fr_energy">{atoms.get_potential_energy():.12f}</i>'
        energy += f'<i name="e_0_energy">{atoms.get_potential_energy() + 1:.12f}</i></energy>\n'
        text += f"<calculation>\n<scstep>{energy}</scstep>\n<structure>{geometry(atoms)}</structure>\n"
        text += f"{block('forces', atoms.get_forces())}{block('stress', -stress(atoms) * KBAR)}{energy}</calculation>\n"
    path.write_text(text + "</modeling>\n")


def outcar(path: Path, images: list[Atoms], *, head: str = "", ends: str = "EDIFF is reached") -> None:
    """The layout of OUTCAR; kB with compression positive, in the order XX YY ZZ XY YZ ZX."""

    def line(values: Any) -> str:
        return " ".join(f"{x:.14f}" for x in values) + "\n"

    text = " vasp.6.3.2 27Jun22\n" + " POTCAR:    PAW_PBE Cu 22Jun2005\n" * 2
    text += "   k-points           NKPTS =      1   k-points in BZ\n"
    text += "   NELM   =     60;   NELMIN=  2; NELMDL= -5     # of ELM steps\n"
    text += f"{head}   ISPIN  =      1    spin polarized calculation?\n   ions per type =               4\n"
    text += " k-points in reciprocal lattice and weights: gamma\n   0.00000000  0.00000000  0.00000000       1.000\n"
    for k, atoms in enumerate(images):
        kb = -stress(atoms)[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]] * KBAR
        rows = "".join(line([*p, *f]) for p, f in zip(atoms.positions, atoms.get_forces(), strict=True))
        text += f"---- Iteration      {k + 1}(  60)  ----\n---- aborting loop because {ends} ----\n"
        text += f"  in kB  {line(kb)}      direct lattice vectors                 reciprocal lattice vectors\n"
        text += "".join(line([*vector, 0.1, 0.1, 0.1]) for vector in atoms.cell.array)
        text += f"\n POSITION                                       TOTAL-FORCE (eV/Angst)\n ----\n{rows} ----\n"
        text += (
            "  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ---------------------------------------------------\n"
        )
        text += f"  free  energy   TOTEN  = {atoms.get_potential_energy():.12f} eV\n\n"
        text += f"  energy  without entropy= 0.5  energy(sigma->0) = {atoms.get_potential_energy() + 1:.12f}\n"
    path.write_text(text + "\n General timing and accounting informations for this job:\n")


def espresso(path: Path, images: list[Atoms]) -> None:
    """The layout of pw.x; Ry, Ry/bohr, and Ry/bohr³ with compression positive, in its constants (CODATA 2006)."""
    unit = create_units("2006")
    rydberg, bohr = unit["Ry"], unit["Bohr"]

    def rows(array: Any, label: str = "") -> str:
        return "".join(f"{label}{' '.join(f'{x:.16f}' for x in row)}\n" for row in np.asarray(array))

    text = "     Program PWSCF v.7.4\n     number of atoms/cell      =  4\n     celldm(1)=   1.000000\n"
    text += "     crystal axes: (cart. coord. in units of alat)\n"
    text += rows(images[0].cell.array / bohr, " a(1) = ( ") + "     site n.     atom       positions (alat units)\n"
    text += rows(images[0].positions / bohr, "  1  Cu tau(   1) = ( ").replace("\n", "  )\n")
    for k, atoms in enumerate(images):
        if k:
            text += f"\nCELL_PARAMETERS (angstrom)\n{rows(atoms.cell.array)}\nATOMIC_POSITIONS (angstrom)\n"
            text += rows(atoms.positions, "Cu ") + "\n"
        text += f"!    total energy              = {atoms.get_potential_energy() / rydberg:.16f} Ry\n\n"
        text += "     Forces acting on atoms (cartesian axes, Ry/au):\n\n"
        text += rows(atoms.get_forces() * bohr / rydberg, "     atom    1 type  1   force = ")
        text += f"\n     total   stress  (Ry/bohr**3)     (kbar)\n{rows(-stress(atoms) * bohr**3 / rydberg)}\n"
    path.write_text(text + "   JOB DONE.\n")


def deepmd(path: Path, images: list[Atoms]) -> None:
    """A system; the virial -dE/dε, eV."""
    (path / "set.000").mkdir(parents=True)
    (path / "type.raw").write_text("0\n" * 4)
    (path / "type_map.raw").write_text("Cu\n")
    arrays = {
        "coord": [atoms.positions.ravel() for atoms in images],
        "box": [atoms.cell.array.ravel() for atoms in images],
        "energy": [atoms.get_potential_energy() for atoms in images],
        "force": [atoms.get_forces().ravel() for atoms in images],
        "virial": [(-stress(atoms) * atoms.get_volume()).ravel() for atoms in images],
    }
    for name, array in arrays.items():
        np.save(path / f"set.000/{name}.npy", np.array(array))


def matpes(path: Path, images: list[Atoms], crystal: Any) -> None:
    """kBar with compression positive, in Voigt's order xx yy zz yz xz xy."""
    made = test_json_more.matpes(crystal, len(images))
    for record, atoms in zip(made, images, strict=True):
        record["structure"] = crystal(["Cu"] * 4, atoms.positions.tolist(), atoms.cell.tolist())
        record |= {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist()}
        record["stress"] = (-stress(atoms)[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * KBAR).tolist()
    path.write_text(json.dumps(made))


def jarvis_records(images: list[Atoms], *, per_atom: bool = False) -> list[dict[str, Any]]:
    """kBar with compression positive, as `stress: vasp-kbar` reads it."""
    made = []
    for k, atoms in enumerate(images):
        inside = {"lattice_mat": atoms.cell.tolist(), "elements": ["Cu"] * 4, "cartesian": False}
        inside["coords"] = atoms.get_scaled_positions(wrap=False).tolist()
        energy = atoms.get_potential_energy() / (4 if per_atom else 1)
        made.append({"jid": f"JVASP-1_{k}", "atoms": inside, "total_energy": energy})
        made[-1] |= {"forces": atoms.get_forces().tolist(), "stresses": (-stress(atoms) * KBAR).tolist()}
    return made


def fitsnap(path: Path, images: list[Atoms], **more: Any) -> None:
    """bar with compression positive, as LAMMPS's pressure; several configurations in one file."""
    entries = [
        {
            "Positions": atoms.positions.tolist(),
            "Energy": atoms.get_potential_energy(),
            "Forces": atoms.get_forces().tolist(),
            "Stress": (-stress(atoms) * KBAR * 1000).tolist(),
            "Lattice": atoms.cell.tolist(),
            "AtomTypes": ["Cu"] * 4,
            "NumAtoms": 4,
        }
        for atoms in images
    ]
    path.write_text(
        json.dumps({"Dataset": {"Data": entries, "EnergyStyle": "electronvolt", "StressStyle": "bar"} | more})
    )


def aselmdb(path: Path, images: list[Atoms], metadata: dict[str, Any] | None = None, **more: Any) -> None:
    """Rows of ASE in LMDB, as they lie in the file: eV, eV/Å and eV/Å³, tension positive, in Voigt's order."""
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as rows:
        content: dict[str, Any] = {"nextid": len(images) + 1, "deleted_ids": []}
        content |= {} if metadata is None else {"metadata": metadata}
        for k, atoms in enumerate(images):
            row = {"numbers": [29] * 4, "positions": atoms.positions.tolist(), "cell": atoms.cell.tolist()}
            row |= {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist(), "pbc": [True] * 3}
            row |= {"stress": atoms.get_stress().tolist(), "ctime": 1.0, "mtime": 1.0, "user": None, "calculator": "x"}
            content[str(k + 1)] = row | {"unique_id": f"a{k}", "calculator_parameters": {}} | more
        for key, value in content.items():
            rows.put(key.encode(), zlib.compress(json.dumps(value).encode()))


def oc20(path: Path, images: list[Atoms]) -> None:
    """Frames with their lines; no stress."""
    text = lines = ""
    for k, atoms in enumerate(images):
        cell = " ".join(f"{x:.16e}" for x in atoms.cell.array.ravel())
        labels = f'Properties={test_oc20.PROPERTIES} energy={atoms.get_potential_energy():.12f} pbc="T T T"'
        text += f'4\nLattice="{cell}" {labels}\n'
        for row, force in zip(atoms.positions, atoms.get_forces(), strict=True):
            text += "Cu " + " ".join(f"{x:.16e}" for x in row) + " T 1 " + " ".join(f"{x:.16e}" for x in force) + "\n"
        lines += f"random1,frame{k},-1.0\n"
    path.write_text(text)
    path.with_name("0.txt").write_text(lines)


FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vasprun": ("vasp", "vasprun.xml", {}),
    "outcar": ("vasp", "OUTCAR", {}),
    "espresso": ("espresso", "pw.out", {}),
    "deepmd": ("deepmd", "system", {}),
    "matpes": ("matpes", "a.json", {}),
    "jarvis": ("jarvis", "a.json", {"stress": "vasp-kbar", "energy_is_per_atom": False}),
    "jarvis per atom": ("jarvis", "a.json", {"stress": "vasp-kbar", "energy_is_per_atom": True}),
    "fitsnap": ("fitsnap", "a.json", {}),
    "aselmdb": ("ase_db", "a.aselmdb", {}),
    "oc20": ("oc20", "0.extxyz", {}),
}


def written(name: str, path: Path, images: list[Atoms], crystal: Any) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "vasprun": lambda: vasprun(path, images),
        "outcar": lambda: outcar(path, images),
        "espresso": lambda: espresso(path, images),
        "deepmd": lambda: deepmd(path, images),
        "matpes": lambda: matpes(path, images, crystal),
        "jarvis": lambda: path.write_text(json.dumps(jarvis_records(images))),
        "jarvis per atom": lambda: path.write_text(json.dumps(jarvis_records(images, per_atom=True))),
        "fitsnap": lambda: fitsnap(path, images),
        "aselmdb": lambda: aselmdb(path, images),
        "oc20": lambda: oc20(path, images),
    }
    makers[name]()


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_derivatives_of_the_energies(tmp_path: Path, read: Any, crystal: Any, name: str) -> None:
    images, strain, moved = strained()
    format_name, file, keys = FORMATS[name]
    written(name, tmp_path / file, images, crystal)
    found, quarantine = read(format_name, tmp_path / file, **keys)
    assert quarantine.total == 0
    assert not quarantine.remarks
    np.testing.assert_allclose(found.energy, [atoms.get_potential_energy() for atoms in images], rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.positions[:4], images[0].positions, rtol=0, atol=1e-12)
    _, minus, plus, back, forth = found.energy
    work = float((found.forces[:4] * moved).sum())
    assert work == pytest.approx(-(forth - back) / (2 * STEP), rel=1e-4)
    if name == "oc20":
        assert np.isnan(found.stress).all()
        return
    volume = float(np.dot(found.cell[0, 0], np.cross(found.cell[0, 1], found.cell[0, 2])))
    assert volume * float((found.stress[0] * strain).sum()) == pytest.approx((plus - minus) / (2 * STEP), rel=1e-4)


@pytest.mark.parametrize("name", ["vasprun", "outcar"])
def test_steps_that_did_not_converge(tmp_path: Path, read: Any, name: str) -> None:
    """Electronic steps up to NELM: the energy and forces of that ionic step are not those of its geometry."""
    images, path = strained()[0], tmp_path / FORMATS[name][1]
    if name == "vasprun":
        # VASP writes NELM twice
        block = '<separator name="{}">\n<i type="int" name="NELM">{}</i>\n</separator>\n'
        parameters = block.format("electronic convergence", 3) + block.format("response functions", 1)
        vasprun(path, images, parameters=parameters)
        energy = '<scstep><energy><i name="e_fr_energy">0</i><i name="e_0_energy">0</i></energy></scstep>\n'
        text = path.read_text()
        at = text.rindex("<scstep>")  # of the last step
        path.write_text(text[:at] + 2 * energy + text[at:])
    else:
        outcar(path, images)
        text = path.read_text()
        at = text.rindex("because EDIFF is reached")
        path.write_text(text[:at] + "EDIFF was not reached (unconverged)" + text[at + 24 :])
    found, quarantine = read("vasp", path)
    assert found.row.tolist() == [0, 1, 2, 3]
    assert quarantine.counts == {"electronic steps not converged": 1}
    assert "NELM" in quarantine.first["electronic steps not converged"].detail
    assert len(read("vasp", path, unconverged="read")[0]) == 5


@pytest.mark.parametrize("stress", [True, False])
def test_predictions_of_a_force_field_are_no_labels(tmp_path: Path, read: Any, stress: bool) -> None:
    """VASP prints those of its machine-learned force field before the step that it calculates, or without it."""
    images, path = strained()[0][:2], tmp_path / "OUTCAR"
    outcar(path, images)
    text = path.read_text()
    table = text[text.index(" POSITION  ") : text.index("  FREE ENERGIE")].replace("(eV/Angst)", "(eV/Angst) (ML)", 1)
    cell = "  ML FORCE on cell =-STRESS in cart. coord. units (eV/cell)\n  in kB  9. 9. 9. 9. 9. 9.\n"
    prediction = (cell if stress else "") + f" {table}  ML FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ----\n"
    prediction += "  free  energy ML TOTEN  =   0.5 eV\n"
    steps = text.split("---- Iteration")
    steps[1] = "\n".join(line for line in steps[1].splitlines() if "in kB" not in line) + "\n"
    last, end = steps[2].split("\n General")
    steps = [steps[0] + prediction, steps[1] + 2 * prediction, last + prediction + "\n General" + end]
    path.write_text("---- Iteration".join(steps))
    found, quarantine = read("vasp", path)
    np.testing.assert_allclose(found.energy, [atoms.get_potential_energy() for atoms in images], rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.forces, np.concatenate([atoms.get_forces() for atoms in images]), atol=1e-11)
    assert np.isnan(found.stress[0]).all()  # not that of the prediction
    assert quarantine.total == 0
    assert list(quarantine.remarks.items()) == [(LEARNED, 4)]
    path.write_text(steps[0] + prediction + "\n General" + end)
    with pytest.raises(RamifyError, match=r"force field only, 2"):
        read("vasp", path)


def test_electronic_steps_of_linear_response(tmp_path: Path, read: Any) -> None:
    """They follow those of the ground state, whose first and last alone contain all terms of the energy."""
    path = tmp_path / "vasprun.xml"
    vasprun(path, strained()[0][:1], parameters='<i type="int" name="NELM">3</i>\n')
    text = path.read_text()
    at = text.index("<scstep>")
    short = '<scstep><energy><i name="e_fr_energy">0</i><i name="e_0_energy">0</i></energy></scstep>\n'
    whole = short.replace("<energy>", '<energy><i name="alphaZ">0</i>')
    for ground, count in ((2, 1), (3, 0)):
        before = whole + (ground - 2) * short + whole
        path.write_text(text[:at] + before + 4 * short + text[at:])
        found, quarantine = read("vasp", path)
        assert len(found) == count
        assert quarantine.counts == ({} if count else {"electronic steps not converged": 1})


def test_version_5_states_convergence_where_nelm_ended_the_loop(tmp_path: Path, read: Any) -> None:
    """Version 6 prints "EDIFF was not reached (unconverged)" there, version 5 "because EDIFF is reached"."""
    outcar(tmp_path / "OUTCAR", strained()[0])
    text = (tmp_path / "OUTCAR").read_text()
    assert text.count("(  60)") == 5
    text = text.replace("(  60)", "(  12)", 3).replace(
        " vasp.6.3.2 27Jun22", " vasp.5.4.4.18Apr17-6-g9f103f2a35 (build)"
    )
    (tmp_path / "OUTCAR").write_text(text)
    found, quarantine = read("vasp", tmp_path / "OUTCAR")
    assert found.row.tolist() == [0, 1, 2]
    assert quarantine.counts == {"electronic steps not converged": 2}


def test_stress_under_an_external_pressure(tmp_path: Path, read: Any) -> None:
    """E + PV is the energy that vasprun.xml states (ASE, merge request 2685), of the stress nothing is documented."""
    images = strained()[0][:1]
    vasprun(tmp_path / "vasprun.xml", images, parameters='<i name="PSTRESS">50.0</i>\n')
    found, quarantine = read("vasp", tmp_path / "vasprun.xml")
    enthalpy_term = 50.0 / KBAR * images[0].get_volume()
    assert found.energy[0] == pytest.approx(images[0].get_potential_energy() - enthalpy_term, rel=1e-6)
    assert np.isnan(found.stress).all()
    assert list(quarantine.remarks.values()) == [1]
    outcar(tmp_path / "OUTCAR", images, head="   PSTRESS=    50.0 pullay stress\n")
    found, quarantine = read("vasp", tmp_path / "OUTCAR")
    assert np.isnan(found.stress).all()
    assert list(quarantine.remarks.values()) == [1]


def test_charge_of_a_calculation(tmp_path: Path, read: Any) -> None:
    """Four atoms of eleven valence electrons, and NELECT."""
    images = strained()[0][:1]
    for electrons, charge in ((44.0, 0), (43.0, 1), (45.0, -1)):
        vasprun(tmp_path / "vasprun.xml", images, parameters=f'<i name="NELECT">{electrons}</i>\n')
        head = f"   NELECT =      {electrons:.4f}    total number of electrons\n   ZVAL   =  11.00\n"
        outcar(tmp_path / "OUTCAR", images, head=head)
        for file in ("vasprun.xml", "OUTCAR"):
            found, quarantine = read("vasp", tmp_path / file)
            assert np.isnan(found.charge).all()
            assert quarantine.remarks == ({UNREAD: 1} if charge else {})
            assert read("vasp", tmp_path / file, charge_key="charge")[0].charge.tolist() == [charge]


def test_rows_and_numbers_that_vasp_could_not_write(tmp_path: Path, read: Any) -> None:
    images, path = strained()[0][:3], tmp_path / "vasprun.xml"
    vasprun(path, images)
    text = path.read_text()
    second = text.index('<varray name="forces">', text.index('<varray name="forces">') + 1)
    row = text.index("<v>", second)
    shorter = text[:row] + text[text.index("<v>", row + 1) :]
    for changed, reason in (
        (shorter, "malformed structure"),
        (text[:row] + "<v> ************" + text[text.index(" ", row + 5) :], "non-finite label"),
    ):
        path.write_text(changed)
        found, quarantine = read("vasp", path)
        assert found.row.tolist() == [0, 2]
        assert quarantine.counts == {reason: 1}
    with pytest.raises(ValueError, match="stress_sign"):  # that of VASP is converted already
        read("vasp", path, stress_sign=-1)


def test_arrays_of_deepmd_that_are_not_read(tmp_path: Path, read: Any) -> None:
    deepmd(tmp_path / "system", strained()[0])
    for name in ("spin", "charge", "stress", "atom_ener"):
        np.save(tmp_path / f"system/set.000/{name}.npy", np.ones((5, 1)))
    _, quarantine = read("deepmd", tmp_path / "system", charge_key="charge")
    assert quarantine.remarks == {"array 'spin' not read": 1, "array 'stress' not read": 1}


def spoil(record: dict[str, Any], changes: dict[str, Any]) -> None:
    """Changes a record; a dotted name is that of an inner value."""
    for name, value in changes.items():
        *outer, last = name.split(".")
        inner = record
        for key in outer:
            inner = inner[key]
        inner[last] = value


@pytest.mark.parametrize("name", ["matpes", "jarvis", "fitsnap", "oc20"])
@pytest.mark.parametrize(
    ("stated", "refused"),
    [
        ({"energy_unit": "Hartree"}, True),
        ({"energy_unit": "eV"}, False),
        ({"energy_unit": "eV/atom"}, True),
        ({"force_unit": "Ha/bohr"}, True),
        ({"length_unit": "bohr"}, True),
    ],
)
def test_units_that_a_record_states(
    tmp_path: Path, read: Any, crystal: Any, name: str, stated: dict[str, str], refused: bool
) -> None:
    """These formats have one unit for each label; a file that states another is of another make."""
    images, path = strained()[0][:1], tmp_path / FORMATS[name][1]
    written(name, path, images, crystal)
    if name == "oc20":
        text = " ".join(f"{key}={value}" for key, value in stated.items())
        path.write_text(path.read_text().replace(" energy=", f" {text} energy="))
    else:
        content = json.loads(path.read_text())
        (content["Dataset"]["Data"] if name == "fitsnap" else content)[0].update(stated)
        path.write_text(json.dumps(content))
    if refused:
        with pytest.raises(RamifyError, match=rf"{next(iter(stated.values()))}.*\n  fix: "):
            read(name, path, **FORMATS[name][2])
    else:
        assert len(read(name, path, **FORMATS[name][2])[0]) == 1


def test_an_energy_per_atom_that_a_record_states(tmp_path: Path, read: Any) -> None:
    made, path = jarvis_records(strained()[0][:1], per_atom=True), tmp_path / "a.json"
    made[0]["energy_unit"] = "eV/atom"
    path.write_text(json.dumps(made))
    for name in ("jarvis", "mlearn"):
        found, _ = read(name, path, energy_is_per_atom=True)
        assert found.energy[0] == pytest.approx(strained()[0][0].get_potential_energy())
        with pytest.raises(RamifyError, match="eV/atom"):
            read(name, path, energy_is_per_atom=False)


def test_styles_of_fitsnap_in_any_case(tmp_path: Path, read: Any) -> None:
    fitsnap(tmp_path / "a.json", strained()[0][:1], energystyle="kcalpermol")
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.replace('"EnergyStyle": "electronvolt", ', ""))
    with pytest.raises(RamifyError, match="kcalpermol"):
        read("fitsnap", tmp_path / "a.json")


def test_charges_and_spins_that_are_not_read(tmp_path: Path, read: Any, crystal: Any) -> None:
    images = strained()[0][:2]
    made = test_json_more.matpes(crystal, 2)
    made[1]["structure"]["charge"] = 1.0
    (tmp_path / "m.json").write_text(json.dumps(made))
    _, quarantine = read("matpes", tmp_path / "m.json")
    assert quarantine.remarks == {UNREAD: 1}
    assert not read("matpes", tmp_path / "m.json", charge=1)[1].remarks
    fitsnap(tmp_path / "f.json", images)
    content = json.loads((tmp_path / "f.json").read_text())
    for entry, more in zip(
        content["Dataset"]["Data"], ({"Charges": [0.5, 0.5, 0, 0]}, {"Charges": [1, -1, 0, 0]}), strict=True
    ):
        entry.update(more)
    (tmp_path / "f.json").write_text(json.dumps(content))
    assert read("fitsnap", tmp_path / "f.json")[1].remarks == {UNREAD: 1}
    content["Dataset"]["Data"][1]["Spins"] = [[2.0, 0, 0, 1.0]] * 4
    (tmp_path / "f.json").write_text(json.dumps(content))
    assert read("fitsnap", tmp_path / "f.json")[1].remarks == {UNREAD: 2}
    oc20(tmp_path / "0.extxyz", images)
    text = (tmp_path / "0.extxyz").read_text()
    (tmp_path / "0.extxyz").write_text(text.replace(" energy=", " total_charge=-1 energy=", 1))
    assert read("oc20", tmp_path / "0.extxyz")[1].remarks == {UNREAD: 1}


@pytest.mark.parametrize("name", ["matpes", "jarvis", "mlearn"])
@pytest.mark.parametrize("value", ["-10.0", True, [-10.0], {"eV": -10.0}])
def test_energies_that_are_no_numbers_cost_their_record_alone(
    tmp_path: Path, read: Any, crystal: Any, name: str, value: Any
) -> None:
    """A text, which is not multiplied by the number of atoms, would be taken for a total energy."""
    images, path = strained()[0][:3], tmp_path / "a.json"
    if name == "matpes":
        matpes(path, images, crystal)
    else:
        path.write_text(json.dumps(jarvis_records(images, per_atom=True)))
    content = json.loads(path.read_text())
    content[1]["energy" if name == "matpes" else "total_energy"] = value
    path.write_text(json.dumps(content))
    found, quarantine = read(name, path, **({} if name == "matpes" else {"energy_is_per_atom": True}))
    assert quarantine.counts == {"malformed energy": 1}
    np.testing.assert_allclose(found.energy, [images[k].get_potential_energy() for k in (0, 2)])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("jarvis", {"atoms.cartesian": "false"}),  # a text is true
        ("fitsnap", {"NumAtoms": 5}),
    ],
)
def test_statements_that_contradict_a_record(
    tmp_path: Path, read: Any, crystal: Any, name: str, changes: dict[str, Any]
) -> None:
    path = tmp_path / "a.json"
    written(name, path, strained()[0][:2], crystal)
    content = json.loads(path.read_text())
    spoil((content["Dataset"]["Data"] if name == "fitsnap" else content)[1], changes)
    path.write_text(json.dumps(content))
    found, quarantine = read(name, path, **FORMATS[name][2])
    assert len(found) == 1
    assert quarantine.counts == {"malformed structure": 1}


def test_metadata_and_states_of_lmdb(tmp_path: Path, read: Any) -> None:
    """As in the files of large datasets: units of the metadata, charge and spin in the data of a row."""
    images = strained()[0][:2]
    aselmdb(tmp_path / "a.aselmdb", images, {"energy_unit": "kcal/mol", "stress_unit": "GPa"})
    found, _ = read("ase_db", tmp_path / "a.aselmdb")
    np.testing.assert_allclose(found.energy, [a.get_potential_energy() / 23.060547830619 for a in images], rtol=1e-7)
    np.testing.assert_allclose(found.forces[:4], images[0].get_forces() / 23.060547830619, rtol=1e-7)
    np.testing.assert_allclose(found.stress[0], stress(images[0]) * 10 / KBAR, rtol=1e-7)
    with pytest.raises(RamifyError, match="kcal/mol"):
        read("ase_db", tmp_path / "a.aselmdb", units={"energy": "eV"})
    aselmdb(tmp_path / "b.aselmdb", images, data={"charge": -1, "spin": 2})
    _, quarantine = read("ase_db", tmp_path / "b.aselmdb")
    assert quarantine.remarks == {UNREAD: 2}
    found, quarantine = read("ase_db", tmp_path / "b.aselmdb", charge_key="charge", spin_key="spin")
    assert (found.charge.tolist(), found.spin.tolist()) == ([-1.0, -1.0], [2.0, 2.0])
    assert not quarantine.remarks


def test_large_numbers_keep_their_digits(tmp_path: Path, read: Any) -> None:
    """Energies of a million eV and positions of ten thousand Å are read in double precision."""
    images = strained()[0][:2]
    deepmd(tmp_path / "system", images)
    for name, offset in (("energy", -1.2e6), ("coord", 1e4)):
        file = tmp_path / f"system/set.000/{name}.npy"
        np.save(file, np.load(file) + offset)
    found, _ = read("deepmd", tmp_path / "system")
    energies = [atoms.get_potential_energy() for atoms in images]
    np.testing.assert_allclose(found.energy + 1.2e6, energies, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.positions[:4] - 1e4, images[0].positions, rtol=0, atol=1e-11)
