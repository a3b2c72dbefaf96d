"""`train.compile: auto`: the choice, its reasons, and equal numbers whatever it is."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch

from ramify.model import compiled
from ramify.model.compiled import CompiledModel
from ramify.train import compile_choice
from ramify.train.compile_cache import VARIABLE, ProgramCache, ProgramCost
from ramify.train.compile_choice import CompileChoice
from ramify.train.reporting import Callbacks
from ramify.train.start import resume_run
from tests.processes.compiler import hide_compiler
from tests.small import assert_near, metrics, tensors, train
from tests.train.conftest import MakeRecipe

EXACT: dict[str, Any] = {"train__precision": "fp64", "train__log_every": 1, "train__max_steps": 9}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is read from earlier runs; the cache folder of PyTorch is restored afterwards."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "programs"))
    monkeypatch.setenv("RAMIFY_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice is final after five steps."""
    for name, value in {"WARMUP": 0, "PLAIN": 1, "PAIRS": 2, "STEPS": 5}.items():
        monkeypatch.setattr(compile_choice, name, value)
    monkeypatch.setattr(compile_choice, "TYPICAL", ProgramCost(compile=1e-9, ratio=0.7))


def assert_same_run(found: Path, expected: Path) -> None:
    """Logs, weights and moments to 1e-10."""
    for line, same in zip(metrics(found), metrics(expected), strict=True):
        assert_near(line, same, rel=1e-10, abs=1e-12)
    plain = tensors(expected)
    for name, tensor in tensors(found).items():
        limit = 1e-10 * float(plain[name].abs().max())
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=limit, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("times", "kind"), [((2.0, 1.0), "compiled"), ((1.0, 2.0), "plain")])
def test_the_faster_steps_are_taken_and_give_the_same_numbers(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None, times: tuple[float, ...], kind: str
) -> None:
    """Nine steps: a plain one, compiled and plain ones in turn, then those that were measured to be faster; in two
    sessions, the second of which knows the program from the cache."""
    measured: dict[bool, int] = {}

    def seconds(self: CompileChoice, compiled: bool) -> float:
        measured[compiled] = len(self._steps[compiled])
        return times[compiled]

    monkeypatch.setattr(CompileChoice, "_seconds_per_edge", seconds)
    calls: list[bool] = []
    run = CompiledModel.__call__

    def counted(self: CompiledModel, *given: Any, **options: Any) -> Any:
        calls.append(True)
        return run(self, *given, **options)

    monkeypatch.setattr(CompiledModel, "__call__", counted)
    options = EXACT | {"model__force_head__kind": "conservative"}
    train(small("qm7x", train__compile="none", **options), tmp_path / "plain")
    said: list[str] = []
    trainer = train(small("qm7x", train__compile="auto", **options), tmp_path / "auto", Callbacks(noted=said.append))
    assert len(calls) == (6 if kind == "compiled" else 2)
    assert measured == {False: 3, True: 1}  # without the step in which the program was compiled
    assert "the next step is compiled" in said[0]
    assert said[1].startswith(f"train.compile: auto: {kind} steps: compiled ones take {times[1] / times[0]:.2f}")
    assert_same_run(tmp_path / "auto", tmp_path / "plain")
    cost = ProgramCache(tmp_path, "").similar()
    assert cost.compile is not None
    assert cost.ratio == times[1] / times[0]
    del trainer

    longer = options | {"train__max_steps": 18}
    train(small("qm7x", train__compile="none", **longer), tmp_path / "longer")
    said.clear()
    resumed = resume_run(
        tmp_path / "auto", Callbacks(noted=said.append), recipe=small("qm7x", train__compile="auto", **longer)
    )
    resumed.fit()
    if kind == "compiled":
        assert "(cached)" in said[0]
    else:
        assert "(cached) and save about 0 s in 8 further steps" in said[0]


def test_a_short_run_takes_plain_steps(small: MakeRecipe, tmp_path: Path) -> None:
    """The same to the bit as without the key."""
    said: list[str] = []
    train(small("qm7x", train__compile="auto", **EXACT), tmp_path / "auto", Callbacks(noted=said.append))
    train(small("qm7x", **EXACT), tmp_path / "plain")
    assert said[0] == "train.compile: auto: plain steps: only 9 remain"
    assert metrics(tmp_path / "auto") == metrics(tmp_path / "plain")


def test_plain_steps_where_compilation_takes_longer_than_it_saves(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    monkeypatch.setattr(compile_choice, "TYPICAL", ProgramCost(compile=1e6, ratio=0.7))
    said: list[str] = []
    train(small("qm7x", train__compile="auto", **EXACT), tmp_path / "auto", Callbacks(noted=said.append))
    assert "plain steps: compilation would take about 1000000 s (typical)" in said[0]
    train(small("qm7x", **EXACT), tmp_path / "plain")
    assert_same_run(tmp_path / "auto", tmp_path / "plain")


@pytest.mark.parametrize("why", ["no compiler", "checkpointing", "broken"])
def test_plain_steps_where_there_can_be_no_others(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None, why: str
) -> None:
    words, changes = {
        "no compiler": (r"C++ compiler, and there is none", {}),
        "checkpointing": (r"train.checkpointing: layers is not compatible", {"train__checkpointing": "layers"}),
        "broken": (r"no such processor", {}),
    }[why]
    if why == "no compiler":
        monkeypatch.setattr(compiled, "BACKEND", "inductor")
        hide_compiler(monkeypatch)

    def broken(graph: Any, inputs: Any, **given: Any) -> Any:
        raise ValueError("no such processor")

    if why == "broken":
        monkeypatch.setattr(compiled, "BACKEND", broken)
    said: list[str] = []
    train(small("qm7x", train__compile="auto", **changes, **EXACT), tmp_path / "auto", Callbacks(noted=said.append))
    assert said[1 if why == "broken" else 0].startswith("train.compile: auto: plain steps: ")
    assert words in said[1 if why == "broken" else 0]
    train(small("qm7x", **EXACT), tmp_path / "plain")
    assert_same_run(tmp_path / "auto", tmp_path / "plain")


def test_one_process_compiles_while_the_others_wait(tmp_path: Path) -> None:
    """Both have the lock of one program: the second one loads the program that the first one compiled."""
    inside, begun = Event(), Event()

    def second() -> None:
        begun.set()
        with ProgramCache(tmp_path, "key").compiling():
            assert inside.is_set()

    other = Thread(target=second)
    with ProgramCache(tmp_path, "key").compiling():
        other.start()
        begun.wait()
        assert ProgramCache(tmp_path, "key").cost() == ProgramCost()
        inside.set()
    other.join()
    cost = ProgramCache(tmp_path, "key").cost()
    assert cost.compile is not None
    assert cost.load is not None


def test_cache_folder_beside_the_stores_has_a_secret_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = tmp_path / "stores"
    (stores / ".compiled-0123456789abcdef").mkdir(parents=True)  # came with the stores
    monkeypatch.delenv(VARIABLE)
    folder = ProgramCache(stores, "key").folder
    assert folder is not None
    assert folder.parent == stores
    assert folder.name == ".compiled-" + (tmp_path / "own" / "token").read_text() != ".compiled-0123456789abcdef"
    monkeypatch.delenv(VARIABLE)
    assert ProgramCache(stores, "key").folder == folder
    monkeypatch.delenv(VARIABLE)
    assert ProgramCache(tmp_path / "absent", "key").folder == tmp_path / "own" / "steps"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert ProgramCache(stores, "key").folder == tmp_path / "mine"


def test_the_default_folder_of_the_compiler_is_not_the_choice_of_the_user(tmp_path: Path) -> None:
    """In a process of its own, since the compiler sets its variable when it is first imported."""
    code = f"""
from ramify.model import compiled
import torch._inductor.runtime.cache_dir_utils as folders
folders.cache_dir()
from ramify.train.compile_cache import ProgramCache
from pathlib import Path
print(ProgramCache(Path({str(tmp_path)!r}), "key").folder, folders.cache_dir(), sep=chr(10))
"""
    without = {name: value for name, value in os.environ.items() if name != VARIABLE}
    printed = subprocess.run([sys.executable, "-c", code], env=without, capture_output=True, text=True, check=True)
    folder, of_compiler = map(Path, printed.stdout.split())
    assert folder.parent == tmp_path
    assert of_compiler == folder
