"""Training from each of the three kinds of store: the same parameters to the bit; all ranks end together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ramify.store.convert import convert_store
from tests.processes import programs
from tests.small import assert_same, make_recipe, prepare_stores, tensors
from tests.store.test_distributed import mpiexec

LIMIT = 200.0


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One recipe for each kind of store, 50 steps on molecules and crystals."""
    folder = tmp_path_factory.mktemp("forms")
    entries = {name: entry for name, entry in prepare_stores(folder).items() if name in ("ani1x", "mptrj")}
    (folder / "adios").mkdir()
    for name in entries:
        convert_store(folder / "stores" / name, "adios", folder / "adios" / name)
    found = {}
    for kind in ("mapped", "adios", "distributed"):
        changes: dict[str, Any] = {"train__max_steps": 50, "train__evaluate_every": 100, "train__checkpoint_every": 100}
        changes["parallel__placement"] = "replicated"
        stores = folder / ("adios" if kind == "adios" else "stores")
        recipe = make_recipe(folder, entries, **changes, data__store=kind, stores=str(stores))
        found[kind] = folder / f"{kind}.yaml"
        found[kind].write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return found


def over_mpi(recipe: Path, run: Path, ranks: int, *, first: str = "") -> subprocess.CompletedProcess[str]:
    """The output of a training on this number of ranks under mpiexec; both streams."""
    code = f"import sys\n{first}\nfrom ramify.cli import main\nsys.argv = ['ramify', *sys.argv[1:]]\nmain()"
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-c", code, "train", str(recipe), "--run", str(run)]
    environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, output)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kinds"), [(1, ("mapped", "adios")), (2, ("mapped", "adios", "distributed"))])
def test_parameters_are_the_same_to_the_bit(
    recipes: dict[str, Path], tmp_path: Path, ranks: int, kinds: tuple[str, ...]
) -> None:
    """Every rank trains on all datasets, so that each reads data stored on another. Only this needs MPI."""
    for kind in kinds:
        if kind == "distributed":
            ended = over_mpi(recipes[kind], tmp_path / kind, ranks)
            assert ended.returncode == 0, ended.stdout
        else:
            done = programs.run(tmp_path, ranks, "train", recipes[kind], "--run", tmp_path / kind)
            assert done.statuses == [0] * ranks, done.said
        assert_same(tensors(tmp_path / kind), tensors(tmp_path / kinds[0]))


FAILS = """
import os
from ramify.train.loop import Trainer
take = Trainer.step
def step(trainer, *rest):
    if os.environ.get('PMI_RANK') == '1' and trainer.progress.step == 5:
        raise ValueError('rank 1 cannot go on')
    return take(trainer, *rest)
Trainer.step = step
"""


def test_one_rank_that_fails_ends_all(recipes: dict[str, Path], tmp_path: Path) -> None:
    ended = over_mpi(recipes["distributed"], tmp_path / "run", 2, first=FAILS)
    assert ended.returncode != 0
    assert "rank 1 cannot go on" in ended.stdout
