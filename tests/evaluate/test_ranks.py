"""Evaluation by several processes equals that by one, to the bit; an error of one rank ends all with one message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.processes import programs
from tests.processes.ranks import on_threads
from tests.small import make_recipe, prepare_stores, train

from ramify.errors import RamifyError
from ramify.evaluate import predict_split, predictions_file
from ramify.evaluate.evaluate import Evaluator, joined_ranks

CUT = 60
"""Atoms per batch here, so that the small splits have 4 to 9 batches."""
CUT_THERE = f"from ramify.evaluate import predict_split; predict_split.ATOMS_AT_ONCE = {CUT}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets with conservative forces, one without force labels; evaluated by one process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ranks")
    entries = prepare_stores(folder)
    chosen = {name: entries[name] for name in ("qm7x", "mptrj", "bare")}
    train(make_recipe(folder, chosen, model__force_head__kind="conservative"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def alone(run: Path) -> dict[str, Any]:
    """Results of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_split, "ATOMS_AT_ONCE", CUT)
        Evaluator(run).evaluate()
    return written(run)


def written(run: Path) -> dict[str, Any]:
    """evaluation.json as text, and the arrays of all predictions."""
    found: dict[str, Any] = {"evaluation.json": (run / "evaluation.json").read_text(encoding="utf-8")}
    for path in sorted((run / "predictions").iterdir()):
        with np.load(path) as file:
            found |= {f"{path.name}/{name}": file[name] for name in file.files}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        if isinstance(value, str):
            assert found[name] == value
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("world", [2, 3])
def test_processes_find_the_same_to_the_bit(run: Path, alone: dict[str, Any], tmp_path: Path, world: int) -> None:
    """Started as by torchrun; only rank zero prints and writes."""
    (run / "evaluation.json").unlink()
    done = programs.run(tmp_path, world, "evaluate", run, "--device", "cpu", first=CUT_THERE, COLUMNS="120")
    assert done.statuses == [0] * world, done.said
    assert "Table 1." in done.said[0]
    assert all(said == "" for said in done.said[1:])
    assert_same(written(run), alone)
    assert not (run / "predictions.parts").exists()


@pytest.mark.parametrize("world", [1, 2, 3, 12])
def test_any_number_of_ranks(run: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Also with more ranks than batches. Threads replace processes and exchange the same data."""
    monkeypatch.setattr(predict_split, "ATOMS_AT_ONCE", CUT)
    results = on_threads(world, lambda rank: Evaluator(run, ranks=rank).evaluate())
    assert all(result == results[0] for result in results)
    assert_same(written(run), alone)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(RamifyError, match=r"--device: cuda, but PyTorch .* finds none here"), joined_ranks("cuda"):
        pass
    with joined_ranks("auto") as layout:
        assert (layout.device, layout.rank, layout.size) == (torch.device("cpu"), 0, 1)


def failing(at: int) -> Callable[..., None]:
    write = predictions_file.write_part

    def fail(folder: Path, dataset: str, rank: int, kept: Any, labels: Any) -> None:
        if rank == at:
            raise RamifyError(f"no space for {dataset}")
        write(folder, dataset, rank, kept, labels)

    return fail


def test_what_fails_on_one_rank_ends_all(run: Path, alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions_file, "write_part", failing(1))
    outcomes = on_threads(3, lambda rank: Evaluator(run, ranks=rank).evaluate())
    assert [str(outcome) for outcome in outcomes] == ["rank 1 of 3: no space for qm7x"] * 3
    assert_same(written(run), alone)
    assert not (run / "predictions.parts").exists()


def test_parts_that_the_first_rank_does_not_see(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes without a shared file system."""
    monkeypatch.setattr(predict_split, "ATOMS_AT_ONCE", CUT)
    write = predictions_file.write_part

    def elsewhere(folder: Path, dataset: str, rank: int, kept: Any, labels: Any) -> None:
        write(folder if rank == 0 else folder.with_name("elsewhere"), dataset, rank, kept, labels)

    monkeypatch.setattr(predictions_file, "write_part", elsewhere)
    outcomes = on_threads(2, lambda rank: Evaluator(run, ranks=rank).evaluate())
    assert all("some predictions of qm7x are not in" in str(outcome) for outcome in outcomes)
    assert all("share" in str(outcome) for outcome in outcomes)
