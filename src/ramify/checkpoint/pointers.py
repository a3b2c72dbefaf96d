"""`checkpoints/pointers.json`: the names of the checkpoints `latest` and `best`, and of others that are kept.

A small file that is replaced atomically, so that copies, object stores and file systems without links preserve it. Runs
of earlier versions have symbolic links instead, or folders where a copy has followed the links, or neither where a copy
has omitted them; all of these can be read, and are replaced by the file when checkpoints are written there.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from ramify.errors import RamifyError
from ramify.files import read_json, sync, write_json
from ramify.untrusted import check_version, is_name

NAME = "pointers.json"
VERSION = 1
_STEP = re.compile(r"step-\d{8,}")
WITH = "with-"
"""Before the name of a dataset: the last checkpoint that has it."""


def resolve(path: Path) -> Path:
    """The folder of a checkpoint; `path` may end in the name of a pointer, e.g. `RUN/checkpoints/best`.

    Raises:
        RamifyError: the pointers are damaged.
    """
    folder = path.parent
    if _is_pointer(path.name) and ((folder / NAME).is_file() or not path.is_dir()):
        return folder / read_pointers(folder).get(path.name, path.name)
    return path


def read_pointers(folder: Path) -> dict[str, str]:
    """The names of the checkpoints in `folder` that are kept, by `latest`, `best` and `with-DATASET`.

    The checkpoints need not exist. Without pointers.json, pointers are taken from links and the folders in their place,
    and missing ones from the manifests.

    Raises:
        RamifyError: pointers.json is damaged.
    """
    if (folder / NAME).is_file():
        return _from_file(folder / NAME)
    found = {p.name: _target(p) for p in _links_and_copies(folder)}
    steps = step_folders(folder)
    if "latest" not in found and steps:
        found["latest"] = steps[-1].name
    latest = folder / found.get("latest", "latest") / "manifest.json"
    if latest.is_file():
        found = _from_manifests(steps, _manifest(latest.parent)) | found
    return found


def checkpoint_folder(run: Path, which: str) -> Path:
    """The folder of a checkpoint of a run.

    Args:
        run: the run directory.
        which: `best`, `latest` or the folder name of a step; it may come from the recipe of another user.

    Raises:
        RamifyError: there is no such checkpoint; the message lists those that exist.
    """
    if not is_name(which):
        raise RamifyError(f"'{which}' is not a checkpoint of a run", fix="name best, latest or step-XXXXXXXX")
    folder = run / "checkpoints"
    if not (resolve(folder / which) / "manifest.json").is_file():
        steps = step_folders(folder)
        there = sorted([*(read_pointers(folder) if steps else ()), *(path.name for path in steps)])
        raise RamifyError(
            f"run {run} has no checkpoint '{which}'",
            fix=f"name one of: {', '.join(there)}" if there else f"train it first: ramify train --resume {run}",
        )
    return folder / which


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; each has a manifest."""
    there = [p for p in folder.glob("step-*") if _STEP.fullmatch(p.name) and (p / "manifest.json").is_file()]
    return sorted(there, key=lambda path: int(path.name.removeprefix("step-")))


def after_failure(run: Path) -> tuple[str, str]:
    """The remains of a run after a failed write, and the command to continue; arguments of `ramify.files.writing`."""
    if step_folders(run / "checkpoints"):
        return "the run is kept up to its latest checkpoint", f"resume it: ramify train --resume {run}"
    if not (run / "recipe.yaml").is_file():
        return "nothing was left behind", "run the same command again"  # it was being created
    return "the run has no checkpoint yet", "start it again with the same command and --continue"


def move_pointers(folder: Path, **moved: str) -> None:
    """Updates pointers atomically; the others are kept. Removes links of earlier versions, and folders in their place,
    after their content is in the file.

    Raises:
        RamifyError: the file cannot be written, or is damaged.
    """
    pointers = read_pointers(folder) | moved
    copies = []
    for entry in _links_and_copies(folder):
        if not entry.is_symlink():  # a copy of the run has followed the link
            target = folder / _target(entry)
            if target.exists():
                copies.append(entry)
            else:
                os.rename(entry, target)
    content = {"format": "ramify-pointers", "version": VERSION, "pointers": dict(sorted(pointers.items()))}
    if pointers and (not (folder / NAME).is_file() or _from_file(folder / NAME) != pointers):
        write_json(folder / NAME, content)
        sync(folder)
    for entry in _links_and_copies(folder):
        if entry.is_symlink():
            entry.unlink()
    for entry in copies:
        shutil.rmtree(entry)


def remove_unneeded(folder: Path) -> None:
    """Removes checkpoints without a pointer or a link of the user, and incomplete files of killed writers. The caller
    must be the only writer, and must have read the checkpoint `latest`."""
    kept = set(read_pointers(folder).values())
    kept |= {Path(os.readlink(p)).name for p in folder.iterdir() if p.is_symlink() and not p.name.startswith(".")}
    for old in folder.glob("step-*"):
        if _STEP.fullmatch(old.name) and old.name not in kept and not old.is_symlink():
            shutil.rmtree(old)
    for half_written in folder.glob(".step-*.partial-*"):
        shutil.rmtree(half_written)
    for half_written in folder.glob(f".{NAME}.partial-*"):
        half_written.unlink()
    for half_moved in folder.glob(".*"):
        if half_moved.is_symlink():
            half_moved.unlink()


def _is_pointer(name: str) -> bool:
    """Whether a pointer may have this name: `latest`, `best`, or `with-` and the name of a dataset."""
    return name in ("latest", "best") or (name.startswith(WITH) and is_name(name.removeprefix(WITH)))


def _links_and_copies(folder: Path) -> list[Path]:
    """Links with the name of a pointer, and checkpoints in their place."""
    if not folder.is_dir():
        return []
    named = [p for p in sorted(folder.iterdir()) if _is_pointer(p.name)]
    return [p for p in named if p.is_symlink() or (p / "manifest.json").is_file()]


def _target(entry: Path) -> str:
    """The name of the target of a link, or of the checkpoint of which a folder in its place is a copy."""
    if entry.is_symlink():
        return Path(os.readlink(entry)).name
    step = _manifest(entry).get("step")
    if not isinstance(step, int):
        raise RamifyError(f"{entry / 'manifest.json'} is damaged: it has no step", fix="use another copy of the run")
    return f"step-{step:08d}"


def _from_manifests(steps: list[Path], latest: dict[str, Any]) -> dict[str, str]:
    """Pointers reconstructed from manifests: the best checkpoint of the manifest of the latest one, and the last
    checkpoint of each dataset that was dropped since."""
    found: dict[str, str] = {}
    names = {path.name for path in steps}
    for path in steps:
        dropped = _manifest(path).get("datasets", {}).keys() - latest.get("datasets", {}).keys()
        found |= {f"{WITH}{dataset}": path.name for dataset in dropped if is_name(dataset)}
    progress = latest.get("trainer", {}).get("progress", {})
    if "best" in progress and (best := f"step-{int(progress.get('best_step', 0)):08d}") in names:
        found["best"] = best
    return found


def _manifest(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "manifest.json")
    return content if isinstance(content, dict) else {}


def _from_file(path: Path) -> dict[str, str]:
    fix = f"remove {path}: it is reconstructed from the checkpoints next to it"
    content = read_json(path, fix=fix)
    pointers = content.get("pointers") if isinstance(content, dict) else None
    if not isinstance(pointers, dict) or content.get("format") != "ramify-pointers":
        raise RamifyError(f"{path} is damaged: it holds no pointers", fix=fix)
    check_version(content, VERSION, path)
    for name, target in pointers.items():
        if not _is_pointer(name) or not isinstance(target, str) or not _STEP.fullmatch(target):
            raise RamifyError(
                f"{path} is damaged: '{name}' names {target!r}; accepted are latest, best and with-DATASET, which name "
                "folders next to it, e.g. step-00000500",
                fix=fix,
            )
    return pointers
