"""Which checkpoint is the latest and which the best: in one file that copies keep; runs of links, and copies that lost
or followed them, go on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ramify.checkpoint.checkpoint import open_checkpoint, save_checkpoint, tidy
from ramify.checkpoint.pointers import NAME, move_pointers, read_pointers, resolve
from ramify.errors import RamifyError
from tests.checkpoint.test_checkpoint import ABOUT, names_in, tensors
from tests.small import files_of

POINTERS = {"latest": "step-00000300", "best": "step-00000200", "with-qm7x": "step-00000100"}


def about(step: int) -> dict[str, object]:
    """Manifests: the best step so far, and a dataset that was removed after step 100."""
    best = {"best": 0.5, "best_step": min(step, 200)}
    datasets = {"ani1x": {}, **({"qm7x": {}} if step == 100 else {})}
    return ABOUT | {"datasets": datasets, "trainer": {"progress": {"step": step} | best}}


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Checkpoints as earlier programs left them, with symbolic links."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (100, 200, 300):
        save_checkpoint(folder, step, *tensors(step), about(step), best=step < 300)
        if step == 100:
            move_pointers(folder, **{"with-qm7x": "step-00000100"})
    (folder / NAME).unlink()
    for name, target in POINTERS.items():
        (folder / name).symlink_to(target)
    return folder


def as_it_is(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True)


def links_followed(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def links_left_out(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=lambda folder, names: [n for n in names if (Path(folder) / n).is_symlink()])


def links_as_files(source: Path, target: Path) -> None:
    """As on systems where links are copied as small files with their target."""
    links_left_out(source, target)
    for link in source.iterdir():
        if link.is_symlink():
            (target / link.name).write_text(os.readlink(link))


def only_what_links_name(source: Path, target: Path) -> None:
    """Followed, and the folders that they named left out."""
    target.mkdir()
    for link in source.iterdir():
        if link.is_symlink():
            shutil.copytree(link, target / link.name)


COPIES = (as_it_is, links_followed, links_left_out, links_as_files, only_what_links_name)


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_run_with_links(linked: Path, tmp_path: Path, copied: Callable[[Path, Path], None]) -> None:
    """They read as the run itself, without a change; the first program that writes there leaves one file."""
    copied(linked, tmp_path / "copy")
    before = files_of(tmp_path / "copy")
    assert read_pointers(tmp_path / "copy") == POINTERS
    for name, target in POINTERS.items():
        assert open_checkpoint(tmp_path / "copy" / name).step == int(target[5:])
    assert files_of(tmp_path / "copy") == before
    tidy(tmp_path / "copy")
    stray = set(POINTERS) if copied is links_as_files else set()
    assert names_in(tmp_path / "copy") - stray == {NAME, *POINTERS.values()}
    assert read_pointers(tmp_path / "copy") == POINTERS
    for name, target in POINTERS.items():
        assert open_checkpoint(tmp_path / "copy" / name).path.name == target
    for step in (400, 500):
        save_checkpoint(tmp_path / "copy", step, *tensors(step), about(step), best=False)
    assert read_pointers(tmp_path / "copy") == POINTERS | {"latest": "step-00000500"}
    assert names_in(tmp_path / "copy") - stray == {NAME, "step-00000100", "step-00000200", "step-00000500"}


def test_a_copy_of_a_run_with_the_file_is_the_run(linked: Path, tmp_path: Path) -> None:
    tidy(linked)
    shutil.copytree(linked, tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    assert {name: open_checkpoint(tmp_path / "copy" / name).path.name for name in POINTERS} == POINTERS


def test_only_names_of_pointers_are_resolved(linked: Path, tmp_path: Path) -> None:
    tidy(linked)
    assert resolve(linked / "best") == linked / "step-00000200"
    assert resolve(linked / "step-00000300") == linked / "step-00000300"
    assert resolve(linked / "elsewhere") == linked / "elsewhere"
    assert resolve(tmp_path / "best") == tmp_path / "best"  # nothing there


def test_names_in_foreign_manifests_become_no_pointers(linked: Path) -> None:
    """Copies without links are read from manifests; every name is checked like a name of a dataset."""
    for name in POINTERS:
        (linked / name).unlink()
    path = linked / "step-00000100/manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"datasets": content["datasets"] | {"../../a": {}, "b\nc": {}}}))
    assert read_pointers(linked) == POINTERS


def test_before_an_evaluation_nothing_is_best(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, *tensors(3), ABOUT, best=False)
    (tmp_path / NAME).unlink()
    assert read_pointers(tmp_path) == {"latest": "step-00000003"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is damaged"),
        ("[]", "it holds no pointers"),
        (
            '{"format": "ramify-pointers", "pointers": {"best": "../../other"}}',
            "'best' names '../../other'; accepted are",
        ),
        ('{"format": "ramify-pointers", "pointers": {"best": 3}}', "'best' names 3; accepted are"),
        (
            '{"format": "ramify-pointers", "pointers": {"with-x y": "step-00000100"}}',
            "'with-x y' names 'step-00000100'",
        ),
        (
            '{"format": "ramify-pointers", "pointers": {"with-a\\u001b[2J": "step-00000100"}}',
            "names 'step-00000100'",
        ),
        ('{"format": "ramify-pointers", "pointers": {"../best": "step-00000100"}}', "'../best' names 'step-00000100'"),
    ],
)
def test_a_damaged_file_is_named(linked: Path, content: str, text: str) -> None:
    """And no checkpoint is removed because of it; without the file, pointers follow from the checkpoints."""
    tidy(linked)
    whole = files_of(linked)
    (linked / NAME).write_text(content)
    for work in (lambda: open_checkpoint(linked / "best"), lambda: tidy(linked)):
        with pytest.raises(RamifyError) as error:
            work()
        assert text in str(error.value)
        assert f"remove {linked / NAME}" in str(error.value)
    assert files_of(linked) == whole | {NAME: content.encode()}
    (linked / NAME).unlink()
    assert read_pointers(linked) == POINTERS


def test_a_newer_file_is_refused(linked: Path) -> None:
    tidy(linked)
    content = json.loads((linked / NAME).read_text())
    (linked / NAME).write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(RamifyError, match="has format version 2, this program reads up to 1"):
        open_checkpoint(linked / "latest")
