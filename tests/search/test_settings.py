"""The settings of a search on disk."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ramify.errors import RamifyError
from ramify.search.runs import geometric_mean
from ramify.search.settings import SearchFolder, Settings, parse_objectives
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


def test_the_geometric_mean_leaves_out_what_no_model_can_beat() -> None:
    """An absent label, and one whose trivial error is rounding; halving any error has the same effect."""
    a = {"energy_mae": 0.1, "trivial_energy_mae": 1.0, "forces_mae": 0.4, "trivial_forces_mae": 1.0}
    b = {"energy_mae": 3e-9, "trivial_energy_mae": 1e-12, "forces_mae": None, "trivial_forces_mae": None}
    assert geometric_mean({"a": a, "b": b}) == pytest.approx(0.2)
    for label in ("energy_mae", "forces_mae"):
        assert geometric_mean({"a": a | {label: a[label] / 2}}) == pytest.approx(0.2 / 2**0.5)
    assert geometric_mean({"b": b}) is None


@pytest.mark.parametrize("text", ["time", "time,metric", "metric,geometric", "geometric,geometric", "geometrc"])
def test_the_first_objective_is_the_only_error(text: str) -> None:
    with pytest.raises(RamifyError, match=r"--objective .*geometric"):
        parse_objectives(text)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RamifyError, match=r"--out .* is not a search"):
        SearchFolder(tmp_path).open(Settings.model_validate(SETTINGS))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
