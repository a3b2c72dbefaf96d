"""The parts of `benchmarks/gpu.sh`, each a function (seconds, dry) -> results. With `dry`, the device is the CPU.

python -m benchmarks.gpu.parts steps steps.json 170
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from benchmarks.calculator import measure as measure_calculator
from benchmarks.calculator import random_model

from ramify.batches.batch import Batch, BatchPart
from ramify.batches.edge_search import EdgeSearch
from ramify.bench.case import Case
from ramify.bench.measure import make_trainer, measure_case
from ramify.bench.profiling.resident import forget_peak, peak_bytes
from ramify.bench.synthetic import equal_datasets
from ramify.errors import RamifyError
from ramify.neighbors.cell_lists import by_nvalchemi, by_vesin
from ramify.neighbors.edges import find_edges
from ramify.parallel.layout import Layout
from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.store.store import Store
from ramify.structures import Structures
from ramify.system import available_memory
from ramify.train.loop import Trainer
from ramify.train.optimization.product_rates import wait_for
from ramify.train.start import alone, configure_process, this_process

ROOT = Path(__file__).parents[2]
ENCODERS: dict[str, dict[str, Any]] = {
    "egnn": {"kind": "egnn", "layers": 4, "width": 128, "vector_channels": 16, "message_layers": 1},
    "many_body": {"kind": "many_body"},
}
FORMS = (("fp32", "none"), ("tf32", "none"), ("bf16", "none"), ("fp32", "default"), ("fp32", "cuda-graphs"))
"""Precision and `train.compile` of the step table."""
EDGES: dict[str, dict[str, Any]] = {
    "cached": {},
    "by threads": {"edge_cache": 0.0},
    "on the device": {"neighbor_search": "device"},
}
"""Where the loader's edges come from, and the keys of `train` for it."""
BRANCHES = 3
TESTS = (
    "tests/train/test_reads.py",
    "tests/train/optimization/test_precision.py",
    "tests/neighbors/test_cell_lists.py",
    "tests/neighbors/test_device_edges.py",
    "tests/batches/test_edge_search.py",
)

Results = dict[str, Any]


def device_of(dry: bool) -> str:
    """Name of the device."""
    return "cpu" if dry else "cuda"


@contextmanager
def recipe_of(encoder: str, *, dry: bool) -> Iterator[tuple[Recipe, dict[str, Path]]]:
    """The recipe `five` with synthetic datasets of 20 atoms, and their stores."""
    content = load_recipe("five").model_dump(mode="json")
    content["model"]["encoder"] = ENCODERS[encoder] | {"cutoff": 5.0, "max_neighbors": 20}
    if dry:
        content["model"]["encoder"] |= {"layers": 1, "width": 8}
    content["train"]["device"] = device_of(dry)
    with tempfile.TemporaryDirectory(prefix="ramify-gpu-") as folder:
        yield equal_datasets(parse_recipe(content, "benchmark"), BRANCHES, Path(folder))


def trainer_of(
    recipe: Recipe, stores: dict[str, Path], batch: int, precision: str = "fp32", compile: str = "none"
) -> Trainer:
    """A trainer at step 0."""
    content = recipe.model_dump(mode="json")
    content["train"] |= {"batch": batch, "precision": precision, "compile": compile}
    changed = parse_recipe(content, "benchmark")
    configure_process(changed)
    opened = {name: Store.open(path) for name, path in stores.items()}
    return make_trainer(changed, opened, Layout.alone(list(changed.datasets_of_branches()), alone(changed).device))


def machine(_: float, dry: bool) -> Results:
    """Versions, device and its product rates."""
    found: Results = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "memory_free": available_memory(),
    }
    if not dry:
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found["memory"] = torch.cuda.get_device_properties(0).total_memory
    size = 64 if dry else 8192
    for dtype, tf32 in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        x = torch.randn(size, size, device=device_of(dry), dtype=dtype)
        seconds = timed(lambda x=x: x @ x, torch.device(device_of(dry)), 5)
        name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
        found[f"product {name}, TFLOP/s"] = 2e-12 * size**3 / seconds
    return found


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after one untimed call."""
    taken = []
    for _ in range(1 + repeats):
        wait_for(device)
        began = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def tests(limit: float, dry: bool) -> Results:
    """Tests that need a device, or depend on it."""
    chosen = ["-k", "nothing_is_called_this"] if dry else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit - 5, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    none_chosen = 5
    if done.returncode not in (0, none_chosen) and not failed:
        raise RamifyError(f"pytest ended with status {done.returncode}: {(done.stderr or done.stdout)[-300:]}")
    return {"summary": lines[-1], "failed": failed}


def steps(limit: float, dry: bool) -> Results:
    """Seconds and memory of a training step by encoder, precision, compilation and batch."""
    deadline, rows, left_out = time.perf_counter() + limit - 15, [], []
    batches, count = ((4,), 1) if dry else ((8, 64, 512), 10)
    forms = FORMS[:1] if dry else FORMS
    for form in forms:
        for encoder in ENCODERS:
            with recipe_of(encoder, dry=dry) as (recipe, stores):
                for batch in batches:
                    case = {"encoder": encoder, "precision": form[0], "compile": form[1], "batch": batch}
                    if time.perf_counter() > deadline:
                        left_out.append(case)
                        continue
                    rows.append(case | step_of(recipe, stores, batch, form, count))
    return {"rows": rows, "left_out": left_out}


def step_of(recipe: Recipe, stores: dict[str, Path], batch: int, form: tuple[str, str], count: int) -> Results:
    """One row of the step table; the error where a form is refused."""
    try:
        trainer = trainer_of(recipe, stores, batch, *form)
    except RamifyError as error:
        return {"refused": str(error).splitlines()[0]}
    device, taken, edges = trainer.layout.device, [], 0
    forget_peak()
    with trainer.loader() as loader:
        for _ in range(3 + count):
            work = next(loader)
            wait_for(device)
            began = time.perf_counter()
            trainer.step(work)
            wait_for(device)
            taken.append(time.perf_counter() - began)
            edges += sum(len(batch.receiver) for batch in work.batches)
    seconds = statistics.median(taken[3:])
    return {
        "ms": 1e3 * seconds,
        "structures/s": batch / seconds,
        "edges/s": edges / (3 + count) / seconds,
        "first step, s": taken[0],
        "peak, MB": peak_bytes(device) / 1e6,
    }


def edges(limit: float, dry: bool) -> Results:
    """Neighbour lists of one structure (vesin on a processor core, nvalchemi on the device if it is installed) and of
    batches (NumPy on a processor core, PyTorch on the device)."""
    rows = [edges_of_one(cells, dry) for cells in ((2,) if dry else (6, 13, 25))]
    return {"rows": rows + [edges_of_batch(count, dry) for count in ((4,) if dry else (8, 64, 512))]}


def edges_of_one(cells: int, dry: bool) -> Results:
    """Neighbour lists of a crystal."""
    crystal = bulk("Cu", cubic=True) * (cells, cells, cells)
    crystal.rattle(0.1, seed=0)
    given = (crystal.positions, crystal.cell.array, crystal.pbc, 5.45)
    row: Results = {"structures": 1, "atoms": len(crystal)}
    row["processor, ms"] = 1e3 * timed(lambda: by_vesin(*given), torch.device("cpu"), 3)
    try:
        device = torch.device(device_of(dry))
        row["device, ms"] = 1e3 * timed(lambda: by_nvalchemi(*given, device_of(dry)), device, 3)
        row["equal"] = len(by_nvalchemi(*given, device_of(dry))[0]) == len(by_vesin(*given)[0])
    except ImportError as error:
        row["device, ms"] = f"not installed: {error}"
    return row


def edges_of_batch(structures: int, dry: bool) -> Results:
    """Edges of a batch of crystals with 20 atoms and at most 20 neighbours."""
    images = [bulk("Cu") * (5, 2, 2) for _ in range(structures)]
    for seed, atoms in enumerate(images):
        atoms.rattle(0.1, seed=seed)
    given, device = Structures.from_ase(images), torch.device(device_of(dry))
    part = BatchPart("crystals", "crystals", given, None, np.zeros(119))
    bare, search = Batch.make([part]).to(device), EdgeSearch(5.0, 20)
    taken = {
        "processor, ms": 1e3 * timed(lambda: find_edges(given, 5.0, 20), torch.device("cpu"), 5),
        "device, ms": 1e3 * timed(lambda: search(bare), device, 5),
    }
    found = search(bare)
    sizes = {"without edges, kB": kilobytes(bare), "with edges, kB": kilobytes(found)}
    equal = len(found.receiver) == len(find_edges(given, 5.0, 20))
    return {"structures": structures, "atoms": len(given.numbers), **taken, **sizes, "equal": equal}


def kilobytes(batch: Batch) -> float:
    """Size of the tensors of a batch."""
    return sum(tensor.nbytes for tensor in batch.tensors().values()) / 1e3


def loader(limit: float, dry: bool) -> Results:
    """Steps fed by the loader, whose threads make batches and copy them on a stream of their own, compared with steps
    on batches that are on the device already: the difference is time spent waiting for data. Edges are taken from the
    edge cache, found for every batch by the threads, or found on the device."""
    rows = []
    for batch in (4,) if dry else (64, 512):
        with recipe_of("egnn", dry=dry) as (recipe, stores):
            for where, keys in EDGES.items():
                rows.append(
                    {"batch": batch, "edges": where, **fed_steps(recipe, stores, batch, keys, 3 if dry else 25)}
                )
    return {"rows": rows}


def fed_steps(recipe: Recipe, stores: dict[str, Path], batch: int, keys: Mapping[str, Any], count: int) -> Results:
    """Time of a step fed by the loader, and of one on a batch that is on the device."""
    train = recipe.train.model_copy(update=dict(keys))
    trainer = trainer_of(recipe.model_copy(update={"train": train}), stores, batch)
    device = trainer.layout.device
    with trainer.loader() as source:
        works = [next(source) for _ in range(3)]
        for work in works:
            trainer.step(work)
        wait_for(device)
        began = time.perf_counter()
        for _ in range(count):
            trainer.step(next(source))
        wait_for(device)
        fed = (time.perf_counter() - began) / count
        began = time.perf_counter()
        for number in range(count):
            trainer.step(works[number % len(works)])
        wait_for(device)
        resident = (time.perf_counter() - began) / count
    return {"fed, ms": 1e3 * fed, "resident, ms": 1e3 * resident, "waiting": 1 - resident / fed}


def calculator(limit: float, dry: bool) -> Results:
    """Latency of the calculator, on the device and on one processor core."""
    rows: list[Results] = []
    small = {"layers": 1, "width": 8} if dry else {}
    for encoder, keys in ENCODERS.items():
        model = random_model("five", keys | {"cutoff": 5.0, "max_neighbors": 20} | small, device_of(dry))
        found = measure_calculator(model, ["plain"], 1 if dry else 3, 2 if dry else 1000, 1 if dry else 15)
        plain = {name: value["plain"] if isinstance(value, dict) else value for name, value in found.items()}
        rows.append({"encoder": encoder, **plain})
    return {"rows": rows}


def memory(limit: float, dry: bool) -> Results:
    """Peak memory of a training process, compared with `ramify plan`."""
    rows = []
    for batch in (4,) if dry else (8, 64, 512):
        with recipe_of("egnn", dry=dry) as (recipe, stores):
            case = Case.of(recipe, stores, mode="weak", placement="replicated", ranks=1, batch=batch, warmup=1, steps=2)
            forget_peak()
            with this_process(case.recipe) as world:
                row = measure_case(case, world)["rows"][0]
        planned = float(row["planned"]["memory"])
        rows.append({"batch": batch, "peak, MB": row["peak"] / 1e6, "plan, MB": planned / 1e6})
    return {"rows": rows}


def ranks(limit: float, dry: bool) -> Results:
    """Two ranks of one run on one device, which communicate by Gloo: a test that they run, not a measure of speed."""
    rows = []
    with recipe_of("egnn", dry=dry) as (recipe, stores):
        for placement in ("replicated", "per-branch"):
            case = Case.of(recipe, stores, mode="weak", placement=placement, ranks=2, batch=12, warmup=1, steps=3)
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder) / "case.json", Path(folder) / "found.json"
                source.write_text(json.dumps(case.model_dump(mode="json")))
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
                command = [*launch, "-m", "benchmarks.gpu.rank", str(source), str(target)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=limit - 3, check=False)
                if done.returncode:
                    raise RamifyError(f"{placement}: {done.stderr[-500:]}")
                found = json.loads(target.read_text())
            peaks = [row["peak"] / 1e6 for row in found["rows"]]
            rows.append({"placement": placement, "ms": 1e3 * found["seconds"], "peak, MB": max(peaks)})
    return {"rows": rows}


PARTS: dict[str, Callable[[float, bool], Results]] = {
    part.__name__: part for part in (machine, tests, steps, edges, loader, calculator, memory, ranks)
}


def main() -> None:
    """Runs one part and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("out", type=Path)
    parser.add_argument("limit", type=float)
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    found = PARTS[given.part](given.limit, given.dry)
    given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
