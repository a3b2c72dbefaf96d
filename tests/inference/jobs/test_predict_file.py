"""`ramify predict`: every structure once and in order, in every format, after interruptions at any moment."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ramify.errors import RamifyError
from ramify.inference.jobs import predict_file as module
from ramify.inference.jobs.predict_file import predict_file
from ramify.inference.model import Model

NAMES = ("H2O", "CH4", "NH3", "SiH4", "CH3OH", "C2H2")
"""Molecules in turn; qm7x has no silicon."""


def make_images(count: int) -> list[Atoms]:
    """Molecules with labels and a name each; every sixth cannot be predicted."""
    rng = np.random.default_rng(0)
    images = []
    for k in range(count):
        atoms = molecule(NAMES[k % len(NAMES)])
        atoms.rattle(0.03, rng=rng)
        atoms.info |= {"name": f"m{k}", "energy": -1.5 * k}
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
        images.append(atoms)
    return images


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """50 molecules as extended XYZ."""
    write(tmp_path / "in.extxyz", make_images(50))
    return tmp_path / "in.extxyz"


def check(found: list[Atoms], model: Model) -> None:
    """Frames of the 42 molecules that can be predicted, each with its prediction, its name and its own labels."""
    images = make_images(50)
    assert [a.info["source_index"] for a in found] == [k for k in range(50) if NAMES[k % 6] != "SiH4"]
    for atoms in found:
        original = images[atoms.info["source_index"]]
        expected = model.predict(atoms, "qm7x")
        assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-6 * len(atoms))
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-6)
        np.testing.assert_allclose(atoms.positions, original.positions, atol=1e-7)
        assert (atoms.info["name"], atoms.info["branch"]) == (original.info["name"], "qm7x")
        assert atoms.info["REF_energy"] == pytest.approx(original.info["energy"])
        np.testing.assert_allclose(atoms.arrays["REF_forces"], original.arrays["forces"], atol=1e-7)


def test_every_structure_once(conservative: Model, source: Path, tmp_path: Path) -> None:
    heard: list[int] = []
    done = predict_file(conservative, source, tmp_path / "out/p.extxyz", ["qm7x"], progress=heard.append)
    check(read(tmp_path / "out/p.extxyz", ":"), conservative)
    assert (done.frames, done.written, sum(heard)) == (50, 42, 50)
    assert done.skipped == {"element that the branch never saw": 8}
    lines = [json.loads(line) for line in (tmp_path / "out/p.extxyz.skipped.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == [f"in.extxyz[{k}]" for k in range(3, 50, 6)]
    assert all("Si" in line["detail"] for line in lines)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["p.extxyz", "p.extxyz.skipped.jsonl"]


@pytest.mark.parametrize("chunk", [1, 7, 25])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_goes_on_where_it_was_stopped(
    conservative: Model, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, stop: int
) -> None:
    """Stopped in the middle of a chunk, after something of it was written: the result is that of an unbroken run."""
    monkeypatch.setattr(module, "CHUNK_STRUCTURES", chunk)
    whole, broken = tmp_path / "whole.extxyz", tmp_path / "broken.extxyz"
    predict_file(conservative, source, whole, ["qm7x"])
    from ramify.inference.jobs import resumable

    calls: list[int] = []
    write_json = resumable.write_json

    def failing(path: Path, content: object) -> None:
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(1)
        write_json(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(resumable, "write_json", failing)
        with pytest.raises(KeyboardInterrupt):
            predict_file(conservative, source, broken, ["qm7x"])
    assert not broken.exists()
    heard: list[int] = []
    done = predict_file(conservative, source, broken, ["qm7x"], progress=heard.append)
    assert heard[0] == min(50, stop * chunk)
    assert (done.frames, done.written) == (50, 42)
    assert broken.read_bytes() == whole.read_bytes()
    assert (tmp_path / "broken.extxyz.skipped.jsonl").read_text() == (
        tmp_path / "whole.extxyz.skipped.jsonl"
    ).read_text()


@pytest.mark.slow
def test_killed_and_taken_up_again(runs: Path, conservative: Model, tmp_path: Path) -> None:
    """SIGKILL in the middle of the work, by another process."""
    write(tmp_path / "in.extxyz", make_images(50) * 20)
    verb = ["predict", tmp_path / "in.extxyz", "-m", runs / "conservative", "-b", "qm7x", "-o", tmp_path / "out.extxyz"]
    state = tmp_path / "out.extxyz.part.json"
    code = (
        "import ramify.inference.jobs.predict_file as m; m.CHUNK_STRUCTURES = 20; from ramify.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, verb)],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    before = json.loads(state.read_text())["frames"]
    assert 0 < before < 1000
    done = predict_file(conservative, tmp_path / "in.extxyz", tmp_path / "out.extxyz", ["qm7x"])
    found = read(tmp_path / "out.extxyz", ":")
    assert [a.info["source_index"] for a in found] == [k for k in range(1000) if NAMES[k % 50 % 6] != "SiH4"]
    assert done.skipped == {"element that the branch never saw": 160}
    assert not state.exists()


def test_another_job_does_not_go_on(
    conservative: Model, direct: Model, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ramify.inference.jobs.resumable import ResumableOutput

    with monkeypatch.context() as patched:
        patched.setattr(ResumableOutput, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict_file(conservative, source, tmp_path / "out.extxyz", ["qm7x"])
    for model, branches in ((conservative, ["mixed"]), (direct, ["ani1x"])):
        with pytest.raises(RamifyError, match=r"out\.extxyz\.part was started with another input, model, branch"):
            predict_file(model, source, tmp_path / "out.extxyz", branches, dataset="ani1x")
    done = predict_file(direct, source, tmp_path / "out.extxyz", ["ani1x"], restart=True)
    assert done.written == 42
    assert {a.info["branch"] for a in read(tmp_path / "out.extxyz", ":")} == {"ani1x"}


def test_nothing_is_overwritten(conservative: Model, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.extxyz").write_text("mine")
    with pytest.raises(RamifyError, match=r"out\.extxyz exists already"):
        predict_file(conservative, source, tmp_path / "out.extxyz", ["qm7x"])
    assert (tmp_path / "out.extxyz").read_text() == "mine"


def test_all_branches(direct: Model, tmp_path: Path) -> None:
    """Each predicts the structures with its elements, under its own name; a structure for no branch is skipped."""
    images = [molecule("H2O"), molecule("NH3"), Atoms("Fe"), molecule("SiH4")]
    write(tmp_path / "in.extxyz", images)
    done = predict_file(direct, tmp_path / "in.extxyz", tmp_path / "out.extxyz", list(direct.branches))
    found = read(tmp_path / "out.extxyz", ":")
    assert [a.info["source_index"] for a in found] == [0, 1, 3]
    water, ammonia, silane = found
    assert {k for k in water.info if k.startswith("energy_")} == {"energy_ani1x", "energy_mptrj", "energy_bare"}
    assert {k for k in water.arrays if k.startswith("forces_")} == {"forces_ani1x", "forces_mptrj"}
    assert {k for k in ammonia.info if k.startswith("energy_")} == {"energy_ani1x", "energy_mptrj"}
    assert {k for k in silane.info if k.startswith("energy_")} == {"energy_mptrj"}
    for name in ("ani1x", "mptrj", "bare"):
        expected = direct.predict(water, name)
        assert water.info[f"energy_{name}"] == pytest.approx(expected.energy, abs=1e-5)
        if expected.forces is not None:
            np.testing.assert_allclose(water.arrays[f"forces_{name}"], expected.forces, atol=1e-6)
    reason = "element that the branch never saw"
    assert done.skipped == {f"branch ani1x: {reason}": 2, f"branch mptrj: {reason}": 1, f"branch bare: {reason}": 3}


@pytest.mark.parametrize("name", ["in.traj", "in.cif", "in.json", "in.db", "in.xyz.gz"])
def test_any_format_that_ase_reads(conservative: Model, crystals: list[Atoms], tmp_path: Path, name: str) -> None:
    write(tmp_path / name, crystals)
    predict_file(conservative, tmp_path / name, tmp_path / "out.extxyz", ["mptrj"])
    found = read(tmp_path / "out.extxyz", ":")
    assert len(found) == len(crystals)
    for atoms, original in zip(found, crystals, strict=True):
        expected = conservative.predict(original, "mptrj")
        assert atoms.get_potential_energy() == pytest.approx(expected.energy, abs=1e-3)  # some formats round
        stress = atoms.get_stress(voigt=False)
        if name.endswith("cif"):  # keeps lengths and angles of the cell only, so the axes of the tensor differ
            np.testing.assert_allclose(np.linalg.eigvalsh(stress), np.linalg.eigvalsh(expected.stress), atol=1e-5)
        else:
            np.testing.assert_allclose(stress, expected.stress, atol=1e-5)


def test_broken_frames_are_counted(conservative: Model, tmp_path: Path) -> None:
    good = "3\nproperties=species:S:1:pos:R:3\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    text = good + good.replace("0.96", "oops") + "0\n\n" + good.replace("0.96", "nan") + good
    (tmp_path / "in.extxyz").write_text(text)
    done = predict_file(conservative, tmp_path / "in.extxyz", tmp_path / "out.extxyz", ["qm7x"])
    assert [a.info["source_index"] for a in read(tmp_path / "out.extxyz", ":")] == [0, 4]
    assert sum(done.skipped.values()) == 3
    records = [json.loads(line) for line in (tmp_path / "out.extxyz.skipped.jsonl").read_text().splitlines()]
    assert {line["record"] for line in records} == {"in.extxyz[1]", "in.extxyz[2]", "in.extxyz[3]"}


def test_files_that_cannot_be_read(conservative: Model, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.extxyz"
    with pytest.raises(RamifyError, match="nowhere does not exist"):
        predict_file(conservative, tmp_path / "nowhere", target, ["qm7x"])
    (tmp_path / "noise.qqq").write_bytes(bytes(range(256)))
    with pytest.raises(RamifyError, match="ASE does not know this format\n  fix: name it with --format"):
        predict_file(conservative, tmp_path / "noise.qqq", target, ["qm7x"])
    (tmp_path / "POSCAR").write_text("nothing\nof the kind\n")
    with pytest.raises(RamifyError, match="ASE cannot read it as 'vasp'"):
        predict_file(conservative, tmp_path / "POSCAR", target, ["qm7x"])
    for name in ("empty.cif", "empty.extxyz"):
        (tmp_path / name).write_text("" if name.endswith("xyz") else "data_x\n")
        with pytest.raises(RamifyError, match=rf"{name} has no structure"):
            predict_file(conservative, tmp_path / name, target, ["qm7x"])
    cut = tmp_path / "cut.extxyz"
    cut.write_text("\n".join(source.read_text().splitlines()[:-2]))
    with pytest.raises(RamifyError, match="is truncated: frame 49 announces"):
        predict_file(conservative, cut, target, ["qm7x"])
    assert not target.exists()


def test_warnings_stand_in_the_frames(conservative: Model, tmp_path: Path) -> None:
    write(tmp_path / "in.extxyz", [Atoms("H2", [[0, 0, 0], [0, 0, 0.3]]), molecule("H2O")])
    done = predict_file(conservative, tmp_path / "in.extxyz", tmp_path / "out.extxyz", ["mixed"], dataset="ani1x")
    found = read(tmp_path / "out.extxyz", ":")
    assert done.warnings == 1
    assert "closer than in the training data" in found[0].info["warning"]
    assert "warning" not in found[1].info


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(runs: Path, tmp_path: Path) -> None:
    """Eight times the structures, the same peak of one process: 4,800 molecules would be 25 MB as ASE atoms."""
    code = """
import resource, sys
from pathlib import Path
import ramify.inference.jobs.predict_file as m
m.CHUNK_STRUCTURES = 200
from ramify.inference.model import load
model = load(Path(sys.argv[1]))
for path in sys.argv[2:]:
    m.predict_file(model, Path(path), Path(path + ".out"), ["qm7x"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    text = "3\nProperties=species:S:1:pos:R:3\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    paths = [tmp_path / f"{count}.extxyz" for count in (600, 4_800)]
    for path in paths:
        path.write_text(text * int(path.stem))
    run = [sys.executable, "-c", code, str(runs / "conservative"), *map(str, paths)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    peaks = [int(line) / 1024 for line in done.stdout.splitlines()]
    assert peaks[1] - peaks[0] < 8, f"{peaks} MiB"
