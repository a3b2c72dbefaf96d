"""The settings of a search on disk."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.search.settings import SearchFolder, Settings
from tests.processes.worlds import PRELOADED

SETTINGS: dict[str, Any] = {"recipe": {}, "space": {}}
ROUNDS = 20


def open_all(folder: Path, together: Any, studies: Any) -> None:
    """Opens `ROUNDS` searches, each at the same time as the other processes do."""
    found = []
    for number in range(ROUNDS):
        together.wait()
        found.append(SearchFolder(folder / str(number)).open(Settings.model_validate(SETTINGS)).study)
    studies.put(found)


def test_controllers_that_start_together_share_one_study(tmp_path: Path) -> None:
    """Otherwise each would train all trials in the same folders."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    together, studies = context.Barrier(3), context.Queue()
    processes = [context.Process(target=open_all, args=(tmp_path, together, studies), daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    first, *others = [studies.get(timeout=60) for _ in processes]
    assert all(other == first for other in others)
    assert len(set(first)) == ROUNDS


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RamifyError, match=r"--out .* is not a search"):
        SearchFolder(tmp_path).open(Settings.model_validate(SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
