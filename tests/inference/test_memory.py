"""Structures too large for the memory are refused before the computation; the estimate is close to the memory used."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from ramify import system
from ramify.errors import RamifyError
from ramify.inference import memory
from ramify.inference.integrations import ase as calculator_module
from ramify.inference.integrations.ase import Calculator
from ramify.inference.memory import (
    CPU_EDGES,
    GPU_PART,
    available_memory,
    budget_for,
    memory_needed,
    readable,
    search_memory,
)
from ramify.inference.model import Model
from ramify.recipe import parse_recipe

MEASURE = """
import ctypes, json, sys, torch
import numpy as np
from ase.build import bulk
from ramify.batches.batch import Batch, BatchPart
from ramify.neighbors.edges import find_edges
from ramify.inference.memory import memory_needed
from ramify.model.build import LabelSpread, build_model
from ramify.recipe import parse_recipe
from ramify.structures import Structures
torch.set_num_threads(1)
recipe = parse_recipe({"datasets": {"d": {"format": "extxyz", "path": "-"}}, "model": json.loads(sys.argv[1])}, "here")
model = build_model(recipe, {"d": LabelSpread(1.0, 1.0, 1)}).eval().requires_grad_(False)
def batch(repeats):
    structures = Structures.from_ase([bulk("Al", cubic=True).repeat(repeats)])
    return Batch.make([BatchPart("d", "d", structures, find_edges(structures, 5.0, 20), np.zeros(119))])
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
small, large = batch(1), batch(8)
forces = recipe.model.force_head.kind
with torch.no_grad():
    model(small, stress=forces == "conservative")  # what is loaded once does not count
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
    model(large, stress=forces == "conservative")
needed = memory_needed(recipe.model, forces, len(large.numbers), len(large.receiver))
print(json.dumps([status("VmHWM") - before, needed]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("forces", "encoder"),
    [("conservative", {"layers": 3, "width": 64, "vector_channels": 16}), ("direct", {"layers": 2, "width": 128})],
)
def test_the_estimate_is_above_the_peak_and_not_far(forces: str, encoder: dict[str, int]) -> None:
    options = json.dumps({"encoder": encoder, "force_head": {"kind": forces}})
    done = subprocess.run([sys.executable, "-c", MEASURE, options], capture_output=True, text=True, check=True)
    peak, estimate = json.loads(done.stdout)
    assert peak < estimate < 3 * peak, f"peak {readable(peak)}, estimate {readable(estimate)}"


def test_100_000_atoms_on_too_little_memory(conservative: Model) -> None:
    """Refused before neighbours are searched: at once, in no memory."""
    large = bulk("Al", cubic=True).repeat((30, 30, 28))
    assert len(large) == 100_800
    with pytest.raises(RamifyError, match=r"too large for the memory: 100,800 atoms take about .* are free"):
        conservative.predict(large, "mptrj", memory=100e6)
    found = conservative.predict([bulk("Al"), large, bulk("Si")], "mptrj", memory=100e6, skip=True)
    assert list(found.refused) == [1]
    assert np.isfinite(found.energy[[0, 2]]).all()


def test_too_many_edges_for_the_memory(conservative: Model) -> None:
    crystal = bulk("Al", cubic=True).repeat(6)
    with pytest.raises(RamifyError, match=r"864 atoms with [\d,]+ edges take about .* of memory, 1 MB are free"):
        conservative.predict(crystal, "mptrj", memory=1e6)
    assert conservative.predict(crystal, "mptrj", memory=1e9).energy < 0


def test_the_calculator_refuses_too(conservative: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    crystal = bulk("Al", cubic=True).repeat(6)
    crystal.calc = Calculator(conservative, "mptrj")
    monkeypatch.setattr(calculator_module, "LARGE", 0.0)
    monkeypatch.setattr(calculator_module, "available_memory", lambda device: 1e6)
    with pytest.raises(RamifyError, match=r"too large for the memory: 864 atoms .*take about .*, 1 MB are free"):
        crystal.get_potential_energy()


def test_a_device_that_runs_out_is_survived(conservative: Model, molecules: list[Atoms], monkeypatch) -> None:
    """The batch is divided; a structure that fails alone is refused."""
    expected = conservative.predict(molecules, "qm7x")
    forward = conservative.network.encoder.forward
    largest = max(len(a) for a in molecules)

    def limited(graph):
        if len(graph.numbers) >= largest:
            raise torch.OutOfMemoryError("no more")
        return forward(graph)

    monkeypatch.setattr(conservative.network.encoder, "forward", limited)
    found = conservative.predict(molecules, "qm7x", skip=True)
    assert [len(molecules[k]) for k in found.refused] == [largest]
    rest = [k for k in range(len(molecules)) if k not in found.refused]
    np.testing.assert_allclose(found.energy[rest], expected.energy[rest], atol=1e-4)


def test_what_is_free() -> None:
    """Of main memory: the value of the system (`tests/test_system.py`)."""
    assert available_memory(torch.device("cpu")) == pytest.approx(system.available_memory(), rel=0.2)


def test_budgets_follow_the_memory(conservative: Model) -> None:
    cpu = torch.device("cpu")
    small, large = (budget_for(conservative.options, "conservative", cpu, m) for m in (1e6, 1e12))
    assert small.edges < large.edges == memory.CPU_EDGES
    assert budget_for(conservative.options, "conservative", cpu, 1.0).edges == 1
    assert search_memory(100_000) > 100 * search_memory(100)
    assert (readable(3.24e9), readable(12e6)) == ("3.2 GB", "12 MB")


def test_limit_of_edges_counts_triplets() -> None:
    """A batch of as many edges as are allowed fits, also where every atom has many."""
    pytest.importorskip("torch_geometric")
    encoder = {"kind": "pyg", "layer": "dimenet++", "layers": 1, "width": 16, "max_neighbors": 30}
    datasets = {"a": {"format": "extxyz", "path": "a.xyz"}}
    model = {"encoder": encoder, "force_head": {"kind": "conservative"}}
    options = parse_recipe({"datasets": datasets, "model": model}, "test").model
    budget = budget_for(options, "conservative", torch.device("cpu"), 5e7)
    assert 30 < budget.edges < CPU_EDGES
    assert memory_needed(options, "conservative", budget.edges // 30, budget.edges) <= 1.01 * GPU_PART * budget.memory
