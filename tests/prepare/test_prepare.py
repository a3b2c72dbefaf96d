"""The whole preparation: stores from files, refused input, and no partial files."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats
from ramify.store import columns
from ramify.store.manifest import Manifest, check_matches
from ramify.store.store import Store
from ramify.system import process_start
from tests.corpora import HELD

MOLECULES = ("H2O", "CH4", "NH3", "C2H6", "C2H4", "CH3OH", "H2CO", "HCN", "CO2", "N2", "C2H2", "N2H4")
ENERGIES = {"H": -13.6, "C": -1030.0, "N": -1485.0, "O": -2042.0}


def options(format_name: str = "extxyz", **keys: Any) -> DatasetOptions:
    return formats()[format_name].options.model_validate({"format": format_name, **keys})


def frames(names: tuple[str, ...] = MOLECULES, copies: int = 5, seed: int = 0) -> list[Atoms]:
    """Displaced molecules bound by springs: energies that the forces belong to, on top of atomic energies."""
    rng = np.random.default_rng(seed)
    images = []
    for name in names:
        for _ in range(copies):
            atoms = molecule(name)
            moved = rng.normal(size=atoms.positions.shape) * 0.03
            atoms.positions += moved
            energy = sum(ENERGIES[s] for s in atoms.symbols) + 5.0 * float((moved**2).sum())
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=-10.0 * moved)
            atoms.info["group"] = name
            images.append(atoms)
    return images


def relabelled(atoms: Atoms, **labels: Any) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, **(dict(atoms.calc.results) | labels))
    return atoms


def prepare(folder: Path, images: list[Atoms] | dict[str, list[Atoms]], **keys: Any) -> Manifest:
    """Writes images to extended XYZ by ASE and prepares them as the dataset `d`."""
    path: Any = "all.extxyz"
    if isinstance(images, dict):
        path = {part: f"{part}.extxyz" for part in images}
        for part, some in images.items():
            write(folder / f"{part}.extxyz", some)
    else:
        write(folder / path, images)
    chosen = options(path=path, group_key="group", **keys)
    return prepare_dataset("d", chosen, folder / "stores", base=folder)


def quarantined(folder: Path) -> list[dict[str, str]]:
    path = folder / "stores" / "d" / "quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    images = frames()
    manifest = prepare(tmp_path, images, theory="springs")
    assert manifest.theory == "springs"
    assert manifest.read == 60
    assert manifest.dropped == {}
    assert manifest.structures == 60
    assert {k: v.groups for k, v in manifest.splits.items()} == {"train": 10, "val": 1, "test": 1}
    assert manifest.labels.model_dump() == {"energy": 60, "forces": 60, "stress": 0}
    atoms = Counter(s for a in images for s in a.symbols)
    assert {s: sum(parts.values()) for s, parts in manifest.elements.items()} == atoms
    assert sum(split.atoms for split in manifest.splits.values()) == atoms.total()
    everything = np.concatenate([a.get_forces() for a in images])
    assert manifest.statistics.max_force == pytest.approx(np.linalg.norm(everything, axis=1).max(), rel=1e-6)
    closest = min(a.get_all_distances()[np.triu_indices(len(a), 1)].min() for a in images)
    assert manifest.statistics.min_distance == pytest.approx(closest, abs=1e-6)
    train = Store.open(tmp_path / "stores" / "d").take(range(manifest.splits["train"].structures))
    assert manifest.statistics.forces_mae == pytest.approx(np.abs(train.forces).mean(), rel=1e-6)
    assert manifest.statistics.forces_rms == pytest.approx(np.sqrt((train.forces.astype(float) ** 2).mean()), rel=1e-6)
    assert manifest.statistics.mean_atoms == pytest.approx(train.n_atoms.mean())
    assert manifest.consistency.slope == pytest.approx(1, abs=1e-3)  # springs: the trapezoidal rule is exact
    assert manifest.consistency.pairs == 12 * 10
    assert manifest.options["gates"]["max_force"] == 100.0
    assert [Path(s.path).name for s in manifest.sources] == ["all.extxyz"]
    assert left_behind(tmp_path / "stores") == ["d"]


def test_what_fails_is_counted_and_named(tmp_path: Path) -> None:
    images = frames()
    relabelled(images[3], forces=images[3].get_forces() + np.array([200.0, 0, 0]))
    images[7].positions[1] = images[7].positions[0] + [0.1, 0, 0]
    relabelled(images[11], energy=images[11].get_potential_energy() + 90.0)
    copy = images[20].copy()
    copy.positions += 1e-5
    copy.calc = SinglePointCalculator(copy, **images[20].calc.results)
    images.append(copy)
    manifest = prepare(tmp_path, images)
    assert manifest.dropped == {
        "atoms too close": 1,
        "duplicate structure": 1,
        "energy outlier within its composition": 1,
        "force above limit": 1,
    }
    assert (manifest.read, manifest.structures) == (61, 57)
    found = {entry["record"]: entry for entry in quarantined(tmp_path)}
    assert found.keys() == {f"all.extxyz[{row}]" for row in (3, 7, 11, 60)}
    assert found["all.extxyz[3]"]["detail"].endswith("limit 100 eV/Å")
    assert found["all.extxyz[7]"]["detail"] == "closest atoms 0.1000 Å apart, limit 0.4 Å"
    assert found["all.extxyz[60]"]["detail"] == "equal to all.extxyz[20]"
    rows = Store.open(tmp_path / "stores" / "d").take(range(57)).row
    assert sorted(rows.tolist()) == [r for r in range(60) if r not in (3, 7, 11)]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """In the quarantine and in origins: with as many folders as necessary."""
    images = frames()
    wrong = [relabelled(atoms, forces=atoms.get_forces() + np.array([200.0, 0, 0])) for atoms in frames(seed=1)]
    for folder, some in {"a/x": images[:30], "b/x": [*images[30:], *wrong[:2]], "c": wrong[2:4]}.items():
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / ("only.extxyz" if folder == "c" else "data.extxyz"), some)
    chosen = options(path=["a/x/data.extxyz", "b/x/data.extxyz", "c/only.extxyz"], group_key="group")
    prepare_dataset("d", chosen, tmp_path / "stores", base=tmp_path)
    records = [line["record"] for line in quarantined(tmp_path)]
    assert records == [*(f"b/x/data.extxyz[{row}]" for row in (30, 31)), "only.extxyz[0]", "only.extxyz[1]"]
    everything = Store.open(tmp_path / "stores" / "d").take(range(60))
    assert set(everything.origin_names) == {"a/x/data.extxyz", "b/x/data.extxyz"}


def test_names_of_which_nothing_is_left_are_forgotten(tmp_path: Path) -> None:
    """A group that consists of duplicates vanishes, and later groups keep their names."""
    copies = frames(("H2O",))
    for atoms in copies:
        atoms.info["group"] = "copies of water"
    images = frames(("H2O",)) + copies + frames(MOLECULES[1:])
    manifest = prepare(tmp_path, images)
    assert manifest.dropped == {"duplicate structure": 5}
    store = Store.open(tmp_path / "stores" / "d")
    everything = store.take(range(len(store)))
    assert sorted(everything.group_names) == sorted(MOLECULES)
    for k, row in enumerate(everything.row):
        assert everything.group_names[everything.group[k]] == images[row].info["group"]
        assert everything.numbers[slice(*everything.offsets[k : k + 2])].tolist() == images[row].numbers.tolist()


def test_duplicates_can_be_kept(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, frames() + frames(), gates={"duplicates": "keep"})
    assert (manifest.structures, manifest.dropped) == (120, {})


def two_states(gap: float) -> list[Atoms]:
    """Every molecule twice, as two spin states have it: the second `gap` eV higher, with other forces."""
    images = frames()
    for low in frames():
        high = low.copy()
        energy, forces = low.get_potential_energy() + gap, low.get_forces() + np.array([0.3, 0.0, 0.4])
        high.calc = SinglePointCalculator(high, energy=energy, forces=forces)
        images.append(high)
    return images


@pytest.mark.parametrize("first", ["low", "high"])
def test_equal_geometries_with_other_labels_are_no_duplicates(tmp_path: Path, first: str) -> None:
    """The lower state stays, in any order; the difference is recorded."""
    images = two_states(0.6)
    if first == "high":
        images = images[60:] + images[:60]
    manifest = prepare(tmp_path, images)
    assert manifest.dropped == {"equal geometry, other labels": 60}
    assert manifest.conflicts is not None
    assert (manifest.conflicts.geometries, manifest.conflicts.structures) == (60, 120)
    assert manifest.conflicts.energy == pytest.approx(0.6 / 2)  # N2 and others of two atoms: the most per atom
    assert manifest.conflicts.forces == pytest.approx(0.5, abs=1e-6)
    (said,) = [f for f in manifest.findings if "conflicting_labels" in f.fix]
    assert "120 structures share 60 geometries" in said.text
    assert "0.3 eV/atom" in said.text
    assert "where" in said.fix
    store = Store.open(tmp_path / "stores" / "d")
    low = range(60) if first == "low" else range(60, 120)
    assert sorted(store.take(range(60)).row.tolist()) == list(low)
    entry = quarantined(tmp_path)[0]
    assert entry["record"] == f"all.extxyz[{60 if first == 'low' else 0}]"
    assert entry["detail"].startswith(f"geometry of all.extxyz[{low.start}], energy 0.2 eV/atom")  # water


@pytest.mark.parametrize(("rule", "kept"), [("keep", 120), ("drop", 0)])
def test_what_stays_of_other_labels_can_be_said(tmp_path: Path, rule: str, kept: int) -> None:
    if kept:
        manifest = prepare(tmp_path, two_states(0.6), gates={"conflicting_labels": rule})
        assert (manifest.structures, manifest.dropped) == (kept, {})
        assert manifest.conflicts is not None
        return
    with pytest.raises(RamifyError, match="120 equal geometry, other labels"):
        prepare(tmp_path, two_states(0.6), gates={"conflicting_labels": rule})


def test_of_copies_that_agree_the_one_with_most_labels_stays(tmp_path: Path) -> None:
    images = frames()
    bare = []
    for atoms in images[:10]:
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(copy, energy=atoms.get_potential_energy())
        bare.append(copy)
    manifest = prepare(tmp_path, bare + images)
    assert manifest.dropped == {"duplicate structure": 10}
    assert (manifest.conflicts, manifest.labels.forces) == (None, 60)


def test_references_are_fitted_on_train_only(tmp_path: Path) -> None:
    """Energies of the test split may be anything: references and scales stay the same to the last bit."""
    made = []
    for name, shift in (("a", 0.0), ("b", 1.0)):
        (tmp_path / name).mkdir()
        parts = {"train": frames(), "val": frames(seed=1), "test": frames(seed=2)}
        for atoms in parts["test"] + parts["val"]:
            relabelled(atoms, energy=atoms.get_potential_energy() + shift * len(atoms))
        made.append(prepare(tmp_path / name, parts))
    assert made[0].references == made[1].references
    assert made[0].statistics == made[1].statistics
    assert made[0].references.structures == 60
    for symbol, energy in ENERGIES.items():
        assert made[0].references.energies[symbol] == pytest.approx(energy, abs=0.1)


def test_given_splits_are_honoured(tmp_path: Path) -> None:
    parts = {"train": frames(MOLECULES[:6]), "val": frames(MOLECULES[2:4], 3, 1), "test": frames(MOLECULES[:1], 2, 2)}
    manifest = prepare(tmp_path, parts)
    assert {k: v.structures for k, v in manifest.splits.items()} == {"train": 30, "val": 6, "test": 2}
    store = Store.open(tmp_path / "stores" / "d")
    for part in ("train", "val", "test"):
        taken = store.take(store.range(part))
        assert {taken.origin_names[o] for o in taken.origin} == {f"{part}.extxyz"}
        assert taken.row.tolist() == list(range(len(parts[part])))  # source order within a split
    assert manifest.shared_groups == 3
    assert manifest.moved_to_train == []


def test_official_splits_of_a_file_are_honoured(tmp_path: Path) -> None:
    manifest = prepare_dataset(
        "t1x", options("transition1x", path=str(FILES["transition1x_mini"])), tmp_path, base=Path()
    )
    store = Store.open(tmp_path / "t1x")
    for part in ("train", "val", "test"):
        taken = store.take(store.range(part))
        assert {taken.origin_names[o].split("/")[1] for o in taken.origin} == {part}
    assert {k: v.groups for k, v in manifest.splits.items()} == {"train": 98, "val": 23, "test": 29}
    assert manifest.shared_groups == 0
    contrary = options("transition1x", path={"test": str(FILES["transition1x_mini"])})
    with pytest.raises(RamifyError, match=r"into the test split, but the file itself puts .*rxn.* into train"):
        prepare_dataset("other", contrary, tmp_path, base=Path())


def test_elements_that_train_lacks(tmp_path: Path) -> None:
    parts = {"train": frames(("H2O", "CH4")), "val": frames(("H2O",), 2, 1), "test": frames(("NH3", "HCN"), 2)}
    with pytest.raises(RamifyError, match=r"'d'.*hold N, which no training .*in 4 structure.*test\.extxyz\[0\]"):
        prepare(tmp_path, parts)
    assert left_behind(tmp_path / "stores") == []


def test_groups_with_rare_elements_go_to_train(tmp_path: Path) -> None:
    """Every molecule but two holds an element of its own, so only these two can leave train."""
    images = []
    for k, number in enumerate([*range(21, 31), 21, 22]):
        atoms = Atoms([number, 1], positions=[[0, 0, 0], [0, 0, 1.5 + 0.01 * k]], info={"group": f"g{k}"})
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * k, forces=np.zeros((2, 3)))
        images.append(atoms)
    manifest = prepare(tmp_path, images)
    store = Store.open(tmp_path / "stores" / "d")
    away = [store.take(store.range(part)).numbers.max() for part in ("val", "test")]
    assert sorted(away) == [21, 22]
    assert all(parts["train"] > 0 for parts in manifest.elements.values())
    for name in manifest.moved_to_train:
        assert 2 <= int(name[1:]) <= 9


def test_gradients_are_refused_and_the_fix_works(tmp_path: Path) -> None:
    images = frames()
    for atoms in images:
        relabelled(atoms, forces=-atoms.get_forces())
    with pytest.raises(RamifyError, match="forces_sign: -1"):
        prepare(tmp_path, images)
    assert left_behind(tmp_path / "stores") == []
    manifest = prepare(tmp_path, images, forces_sign=-1)
    assert manifest.consistency.slope == pytest.approx(1, abs=1e-3)
    store = Store.open(tmp_path / "stores" / "d")
    first = store.take(np.flatnonzero(store.take(range(60)).row == 0))
    np.testing.assert_allclose(first.forces, -images[0].get_forces(), atol=1e-6)


def test_comp6_is_refused_as_it_stands(shared: Path, tmp_path: Path) -> None:
    path = str(shared / "data" / "ani_comp6_s66x8" / "s66x8_wb97x6-31gd.h5")
    with pytest.raises(RamifyError, match=r"-0\.98.*gradients"):
        prepare_dataset("comp6", options("ani1", path=path), tmp_path, base=Path())
    manifest = prepare_dataset("comp6", options("ani1", path=path, forces_sign=-1), tmp_path, base=Path())
    assert manifest.consistency.slope == pytest.approx(0.98, abs=0.01)
    assert manifest.structures == 528


def test_datasets_without_forces(tmp_path: Path) -> None:
    images = frames()
    for atoms in images:
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy())
    manifest = prepare(tmp_path, images, forces_key=None)
    assert manifest.labels.forces == 0
    assert manifest.statistics.forces_mae is None
    assert manifest.statistics.forces_rms is None
    assert manifest.statistics.max_force is None
    assert manifest.consistency.model_dump() == {"slope": None, "pairs": 0, "correlation": None}


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(
        RamifyError, match=r"no structure is left \(60 force above limit \(first: all\.extxyz\[0\]: largest force"
    ):
        prepare(tmp_path, frames(), gates={"max_force": 1e-9})
    assert left_behind(tmp_path / "stores") == []


def test_too_few_groups(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"2 group\(s\) cannot be split"):
        prepare(tmp_path, frames(("H2O", "CH4")))


def test_the_order_of_files_does_not_change_the_split(tmp_path: Path) -> None:
    images = frames()
    splits = []
    for name, order in (("a", range(60)), ("b", reversed(range(60)))):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name, [images[i] for i in order])
        store = Store.open(tmp_path / name / "stores" / "d")
        taken = {part: store.take(store.range(part)) for part in ("val", "test")}
        splits.append({part: {s.group_names[g] for g in s.group} for part, s in taken.items()})
    assert splits[0] == splits[1]


def test_paths(tmp_path: Path) -> None:
    images = frames()
    for k in range(3):
        write(tmp_path / f"part-{k}.extxyz", images[20 * k : 20 * k + 20])

    def read(path: Any) -> Manifest:
        return prepare_dataset("d", options(path=path, group_key="group"), tmp_path / "s", base=tmp_path, force=True)

    listed = ["part-0.extxyz", "part-1.extxyz", str(tmp_path / "part-2.extxyz")]
    for path in ("part-*.extxyz", listed):
        manifest = read(path)
        assert [Path(s.path).name for s in manifest.sources] == [f"part-{k}.extxyz" for k in range(3)]
        assert manifest.structures == 60
        assert all(s.bytes == (tmp_path / Path(s.path).name).stat().st_size for s in manifest.sources)
    for path, message in (
        ("none-*.extxyz", "no file matches"),
        ("none.extxyz", "none.extxyz does not exist"),
        (".", "is a folder"),
        (["part-0.extxyz", "part-*.extxyz"], "twice"),
        ([], "names no file"),
    ):
        with pytest.raises(RamifyError, match=rf"datasets\.d\.path.*{message}"):
            read(path)


def test_up_to_date_stores_are_left_alone(tmp_path: Path) -> None:
    first = prepare(tmp_path, frames())
    before = (tmp_path / "stores" / "d" / "manifest.json").stat()
    assert prepare(tmp_path, frames()) == first
    after = (tmp_path / "stores" / "d" / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_stores_from_other_options_or_files_are_not_replaced_unasked(tmp_path: Path) -> None:
    prepare(tmp_path, frames())
    with pytest.raises(RamifyError, match=r"gates: prepared with .*100\.0.* now .*50\.0.*\n  fix: .*--force"):
        prepare(tmp_path, frames(), gates={"max_force": 50.0})
    with pytest.raises(RamifyError, match=r"prepared from other files \(changed: .*all\.extxyz\)"):
        prepare(tmp_path, frames(seed=1))
    path = tmp_path / "all.extxyz"
    chosen = options(path="all.extxyz", group_key="group")
    made = prepare_dataset("d", chosen, tmp_path / "stores", base=tmp_path, force=True)
    assert made.sources[0].bytes == path.stat().st_size
    assert left_behind(tmp_path / "stores") == ["d"]


def test_a_run_refuses_a_store_of_other_options(tmp_path: Path) -> None:
    prepare(tmp_path, frames())
    store = Store.open(tmp_path / "stores" / "d")
    check_matches(store, options(path="all.extxyz", group_key="group"))
    with pytest.raises(RamifyError, match="split_seed: prepared with 0, now 1"):
        check_matches(store, options(path="all.extxyz", group_key="group", split_seed=1))
    with pytest.raises(RamifyError, match="format: prepared with 'extxyz', now 'ani1x'"):
        check_matches(store, options("ani1x", path="all.extxyz"))


def test_only_stores_are_replaced(tmp_path: Path) -> None:
    target = tmp_path / "stores" / "d"
    target.mkdir(parents=True)
    (target / "thesis.tex").write_text("years of work")
    write(tmp_path / "all.extxyz", frames())
    for force in (False, True):
        with pytest.raises(RamifyError, match="exists and is not a store"):
            prepare_dataset("d", options(path="all.extxyz"), tmp_path / "stores", base=tmp_path, force=force)
    assert (target / "thesis.tex").read_text() == "years of work"


def test_damaged_stores_can_be_made_anew(tmp_path: Path) -> None:
    made = prepare(tmp_path, frames())
    store = tmp_path / "stores" / "d"
    (store / "manifest.json").unlink()
    with pytest.raises(RamifyError, match=r"without its manifest\n  fix: .*--force"):
        prepare(tmp_path, frames())
    chosen = options(path="all.extxyz", group_key="group")
    assert prepare_dataset("d", chosen, tmp_path / "stores", base=tmp_path, force=True).columns == made.columns


class Stop(Exception):
    """Something unexpected."""


def test_an_exception_while_reading_leaves_nothing(tmp_path: Path) -> None:
    def stop(structures: int) -> None:
        raise Stop

    chosen = options("ani1x", path=str(FILES["ani1x_mini"]))
    with pytest.raises(Stop):
        prepare_dataset("d", chosen, tmp_path / "stores", base=Path(), progress=stop)
    assert left_behind(tmp_path / "stores") == []


def test_a_failed_replacement_keeps_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, frames())
    before = Store.open(tmp_path / "stores" / "d").manifest

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr("ramify.files.sync", fail)  # the last thing before the new store takes the old one's place
    with pytest.raises(OSError, match="broken disk"):
        prepare_dataset(
            "d", options(path="all.extxyz", group_key="group"), tmp_path / "stores", base=tmp_path, force=True
        )
    assert left_behind(tmp_path / "stores") == ["d"]
    assert Store.open(tmp_path / "stores" / "d", verify=True).manifest == before


@pytest.mark.parametrize("after", [0, 5, 15, 30, 40])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Writing fails once at each stage: staging, column headers, columns."""
    calls = 0
    real = columns.write

    def full(file: Any, array: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, array)

    monkeypatch.setattr(columns, "write", full)
    chosen = options("ani1x", path=str(FILES["ani1x_mini"]))
    with pytest.raises(RamifyError, match=r"No space left on device; nothing was left behind\n  fix: free some space"):
        prepare_dataset("d", chosen, tmp_path / "stores", base=Path())
    assert left_behind(tmp_path / "stores") == []


def run_elsewhere(code: str, folder: Path, **keywords: Any) -> subprocess.Popen[str]:
    """Starts a process that prepares the ANI-1x corpus as dataset `d` in `folder`; `code` runs first."""
    script = """
        import resource, sys, time
        from pathlib import Path
        from ramify.prepare.prepare import prepare_dataset
        from ramify.errors import RamifyError
        from ramify.minicorpora import FILES
        from ramify.sources.formats import formats
        chosen = formats()["ani1x"].options.model_validate({"format": "ani1x", "path": str(FILES["ani1x_mini"])})
        progress = None
        CODE
        try:
            prepare_dataset("d", chosen, Path(sys.argv[1]), base=Path(), progress=progress)
        except RamifyError as error:
            print(error)
            sys.exit(3)
    """
    text = textwrap.dedent(script).replace("CODE", textwrap.dedent(code).strip())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", text, str(folder)], stdout=subprocess.PIPE, text=True, env=environment, **keywords
    )


@pytest.mark.parametrize("limit", [0, 3000, 20_000])
def test_a_write_that_the_system_refuses(tmp_path: Path, limit: int) -> None:
    """The limit on file sizes makes write(2) itself fail, at the first file or a later one."""
    code = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    process = run_elsewhere(code, tmp_path / "stores")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "File too large; nothing was left behind" in output
    assert left_behind(tmp_path / "stores") == []


def test_a_killed_process_leaves_no_store_and_the_next_cleans_up(tmp_path: Path) -> None:
    code = """
    def progress(structures):
        print("reading", flush=True)
        time.sleep(60)
    """
    process = run_elsewhere(code, tmp_path / "stores")
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    began = process_start(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    leftover = left_behind(tmp_path / "stores")
    assert leftover == [f".d.partial-{process.pid}-{began}"]  # hidden, and no store to anyone
    with pytest.raises(RamifyError, match="no store here"):
        Store.open(tmp_path / "stores" / "d")
    chosen = options("ani1x", path=str(FILES["ani1x_mini"]))
    prepare_dataset("d", chosen, tmp_path / "stores", base=Path())
    assert left_behind(tmp_path / "stores") == ["d"]
    Store.open(tmp_path / "stores" / "d", verify=True)


def test_a_store_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    made = prepare(tmp_path, frames())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "stores" / "d").rename(tmp_path / "stores" / f".d.replaced-{gone.pid}")
    assert prepare(tmp_path, frames()) == made
    assert left_behind(tmp_path / "stores") == ["d"]


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "stores" / ".d.partial-1"  # process 1 always lives
    other.mkdir(parents=True)
    prepare(tmp_path, frames())
    assert left_behind(tmp_path / "stores") == [".d.partial-1", "d"]


def test_a_living_process_of_the_same_number_that_began_later_keeps_nothing(tmp_path: Path) -> None:
    """As after a restart of the machine, or where process numbers are reused quickly."""
    made = prepare(tmp_path, frames())
    stores = tmp_path / "stores"
    began = process_start(os.getpid())
    assert began is not None
    (stores / f".d.partial-{os.getpid()}-{began - 1}").mkdir()
    (stores / "d").rename(stores / f".d.replaced-{os.getpid()}-{began - 1}")
    assert prepare(tmp_path, frames()) == made
    assert left_behind(stores) == ["d"]


@pytest.mark.parametrize(
    ("name", "format_name", "keys"),
    [
        ("ani1x_mini", "ani1x", {}),
        ("qm7x_mini", "qm7x", {"labels": "pbe0"}),
        ("mptrj_mini", "mptrj", {}),
        ("alexandria_mini", "alexandria", {}),
    ],
)
def test_embedded_corpora(tmp_path: Path, name: str, format_name: str, keys: dict[str, Any]) -> None:
    kept, groups = HELD[name].structures, HELD[name].systems
    manifest = prepare_dataset("d", options(format_name, path=str(FILES[name]), **keys), tmp_path, base=Path())
    assert manifest.structures == kept
    assert sum(split.groups for split in manifest.splits.values()) == groups
    for part in ("val", "test"):
        assert manifest.splits[part].structures == pytest.approx(kept / 10, rel=0.15)
    assert manifest.read == kept + sum(manifest.dropped.values())
    assert all(parts["train"] > 0 for parts in manifest.elements.values())


def test_every_of_transition1x_counts_iterations_of_a_band_once(tmp_path: Path) -> None:
    """The key has a meaning of its own in this format; the general one must not thin the rest again."""
    stated = {"format": "transition1x", "path": str(FILES["transition1x_mini"])}
    kind = formats()["transition1x"].options
    whole = prepare_dataset("a", kind.model_validate(stated), tmp_path / "a", base=tmp_path)
    thinned = prepare_dataset("b", kind.model_validate(stated | {"every": 2}), tmp_path / "b", base=tmp_path)
    assert whole.read == thinned.read
    assert "left out by every" not in thinned.dropped
    assert thinned.dropped["band iteration not taken (every)"] > 0
