"""Checkpoints return what was saved; damage of any byte is found; a killed writer leaves the previous checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ramify.checkpoint.checkpoint import VERSION, Checkpoint, open_checkpoint, save_checkpoint
from ramify.checkpoint.pointers import NAME, read_pointers
from ramify.errors import RamifyError
from tests.small import assert_same, flip_byte

FILES = [
    "encoder.safetensors",
    "branches/ani1x.safetensors",
    "branches/mptrj.safetensors",
    "training/encoder.safetensors",
    "training/branches/ani1x.safetensors",
    "training/branches/mptrj.safetensors",
]
ABOUT = {"recipe": {"name": "x"}, "datasets": {"ani1x": {"H": -13.587}}, "branch_of": {"ani1x": "ani1x"}, "trainer": {}}


def tensors(step: int, size: int = 50) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and training state whose every number is the step."""
    names = ["encoder.layers.0.weight", "branches.ani1x.energy.weight", "branches.mptrj.energy.weight"]
    weights = {name: torch.full((size, 3), float(step)) for name in names}
    moments = {f"{n}/exp_avg": t.clone().double() for n, t in weights.items()}
    return weights, weights | moments | {"encoder.layers.0.weight/step": torch.tensor(float(step))}


def save(folder: Path, step: int, *, best: bool = False) -> Path:
    weights, training = tensors(step)
    return save_checkpoint(folder, step, weights, training, ABOUT, best=best)


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_what_goes_in_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 500, best=True)
    assert path == tmp_path / "step-00000500"
    checkpoint = open_checkpoint(tmp_path / "best")
    weights, training = tensors(500)
    assert_same(checkpoint.weights(), weights)
    assert_same(checkpoint.training(), training)
    assert checkpoint.step == 500
    assert checkpoint.manifest["branches"] == ["ani1x", "mptrj"]
    assert {k: checkpoint.manifest[k] for k in ABOUT} == ABOUT
    assert sorted(checkpoint.manifest["files"]) == sorted(FILES)
    assert {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()} == {*FILES, "manifest.json"}


def test_views_and_other_layouts_are_saved_as_they_read(tmp_path: Path) -> None:
    """Transposed weights, slices and scalars."""
    base = torch.arange(12.0).reshape(3, 4)
    weights = {"encoder.t": base.T, "encoder.slice": base[:, 1:3], "encoder.scalar": torch.tensor(2.5)}
    save_checkpoint(tmp_path, 1, weights, {}, ABOUT, best=False)
    found = open_checkpoint(tmp_path / "latest").weights()
    np.testing.assert_array_equal(found["encoder.t"].numpy(), base.numpy().T)
    np.testing.assert_array_equal(found["encoder.slice"].numpy(), base.numpy()[:, 1:3])
    assert float(found["encoder.scalar"]) == 2.5


def test_pointers_and_pruning(tmp_path: Path) -> None:
    """`latest` follows every save, `best` the best ones; nothing else stays, and nothing that is pointed to goes."""
    expected = {100: 100, 200: 100, 300: 300, 400: 300, 500: 300}
    for step, best in expected.items():
        save(tmp_path, step, best=step == best)
        assert open_checkpoint(tmp_path / "latest").step == step
        assert open_checkpoint(tmp_path / "best").step == best
        assert names_in(tmp_path) == {NAME, f"step-{step:08d}", f"step-{best:08d}"}


def test_saving_a_step_again_moves_the_pointers_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    before = {f: f.stat().st_mtime_ns for f in path.rglob("*") if f.is_file()}
    save(tmp_path, 100, best=True)
    assert {f: f.stat().st_mtime_ns for f in path.rglob("*") if f.is_file()} == before
    assert open_checkpoint(tmp_path / "best").step == 100


def test_best_and_latest_move_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted writer must not leave a `latest` whose best step is newer than `best`."""
    save(tmp_path, 100, best=True)
    replace, seen = os.replace, []

    def recorded(source: Path, target: Path) -> None:
        seen.append((Path(target).name, read_pointers(tmp_path)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", recorded)
    save(tmp_path, 200, best=True)
    assert seen[-1] == (NAME, {"latest": "step-00000100", "best": "step-00000100"})
    assert read_pointers(tmp_path) == {"latest": "step-00000200", "best": "step-00000200"}


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_in_any_file_is_found(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    flip_byte(path / name)
    checkpoint = open_checkpoint(tmp_path / "latest")
    load: Callable[[], object] = checkpoint.training if name.startswith("training") else checkpoint.weights
    with pytest.raises(RamifyError, match=rf"{name} is damaged: its checksum differs from the manifest\n  fix: "):
        load()


def test_a_flipped_byte_anywhere_in_the_manifest_is_found(tmp_path: Path) -> None:
    """In a number, a name, a checksum, the version: 200 places."""
    path = save(tmp_path, 1)
    whole = (path / "manifest.json").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(whole), 200, replace=False).tolist():
        if bytes([whole[at], whole[at] ^ 1]).isspace():
            continue  # one blank for another changes nothing
        flip_byte(path / "manifest.json", at)
        with pytest.raises(RamifyError, match=r"manifest\.json|format version|is not a checkpoint"):
            open_checkpoint(path)
        (path / "manifest.json").write_bytes(whole)
    assert open_checkpoint(path).step == 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_short_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    checkpoint = open_checkpoint(path)
    load: Callable[[], object] = checkpoint.training if name.startswith("training") else checkpoint.weights
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-7])
    with pytest.raises(RamifyError, match=rf"{name} is damaged"):
        load()
    (path / name).unlink()
    with pytest.raises(RamifyError, match=rf"lacks {name}"):
        load()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"no checkpoint at .*latest\n  fix: "):
        open_checkpoint(tmp_path / "latest")
    for content in ("[]", "3", '{"format": "ramify-store", "version": 2}', "{}"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(RamifyError, match="is not a checkpoint"):
            open_checkpoint(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RamifyError, match=r"manifest\.json is damaged"):
        open_checkpoint(tmp_path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": VERSION + 1}))
    with pytest.raises(RamifyError, match=rf"has format version {VERSION + 1}, this program reads up to {VERSION}"):
        open_checkpoint(path)


def test_a_folder_that_is_moved_while_a_checkpoint_is_written_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, make = tmp_path / "run", Path.mkdir
    (run / "checkpoints").mkdir(parents=True)

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        make(path, *arguments, **options)
        if run.exists():
            run.rename(tmp_path / "moved")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(RamifyError, match="step-00000001"):
        save_checkpoint(run / "checkpoints", 1, *tensors(1), ABOUT, best=False)
    assert not run.exists()


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 1, best=True)
    weights, training = tensors(2)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, weights, training, ABOUT | {"trainer": object()}, best=True)
    assert names_in(tmp_path) == {NAME, "step-00000001"}
    assert_same(open_checkpoint(tmp_path / "latest").weights(), tensors(1)[0])


START = f"""
import resource, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
from tests.checkpoint import test_checkpoint
folder = Path(sys.argv[1])
"""


def in_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a separate process, with the names `test_checkpoint` and `folder`."""
    return subprocess.run(
        [sys.executable, "-c", START + code, str(folder)], capture_output=True, text=True, check=False
    )


def save_without_end(folder: Path, start: int, reports: int) -> None:
    """Saves one checkpoint of 5 MB after the other and reports each."""
    for step in range(start, 1_000_000):
        save_checkpoint(folder, step, *tensors(step, 20_000), ABOUT, best=step % 3 == 0)
        os.write(reports, b"%d\n" % step)


def kill_writers(folder: Path) -> Iterator[dict[str, int]]:
    """Ten times: forks a writer, kills it (SIGKILL) within a tenth of a second, and prints what it left."""
    rng, start = random.Random(0), 1
    for _ in range(10):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            save_without_end(folder, start, writing)
        os.close(writing)
        with os.fdopen(reading) as reports:
            first = reports.readline()
            time.sleep(rng.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            reported = int((first + reports.read()).split()[-1])
        found = {"reported": reported, "leftovers": len(list(folder.glob(".*")))}
        for name in read_pointers(folder):
            found[name] = whole_step(open_checkpoint(folder / name))
        start = found["latest"] + 1
        yield found


def whole_step(checkpoint: Checkpoint) -> int:
    """Its step, if every number in it is the step's."""
    weights, training = tensors(checkpoint.step, 20_000)
    assert_same(checkpoint.weights(), weights)
    assert_same(checkpoint.training(), training)
    return checkpoint.step


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    """Reported checkpoints exist, those named by links are complete, and the next save removes partial ones."""
    done = in_process("import json\nfor k in test_checkpoint.kill_writers(folder): print(json.dumps(k))\n", tmp_path)
    assert done.stderr == ""
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == 10
    for found in rounds:
        assert found["reported"] <= found["latest"] <= found["reported"] + 1
        if found["latest"] >= 3:
            assert found["best"] % 3 == 0
            assert found["latest"] - 3 < found["best"] <= found["latest"] + 1
    assert sum(found["leftovers"] for found in rounds) > 0  # some were caught in the act
    last = rounds[-1]["latest"] + 1
    save(tmp_path, last, best=True)
    assert names_in(tmp_path) == {NAME, f"step-{last:08d}"}


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Simulated by a limit on file sizes."""
    save(tmp_path, 1, best=True)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    done = in_process(limit + "test_checkpoint.save_without_end(folder, 2, 1)\n", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    said = f"CannotWrite: cannot write {tmp_path}/step-00000002/encoder.safetensors: File too large; nothing was left"
    assert said in done.stderr
    assert names_in(tmp_path) == {NAME, "step-00000001"}
    assert_same(open_checkpoint(tmp_path / "latest").weights(), tensors(1)[0])
