"""Training steps, inference and memory of Ramify and of other packages, on the same molecules and edges.

    OMP_NUM_THREADS=1 python -m benchmarks.against OUT                     # writes OUT/against.json and OUT/against.md
    OMP_NUM_THREADS=1 python -m benchmarks.against OUT --models "ramify five" "MACE 32x0e" --batch 8
    OMP_NUM_THREADS=1 python -m benchmarks.against OUT --models "ramify paper" "HydraGNN 4 x 866" --branches 5

Packages that are not installed are left out, and the results name them. The structures are molecules of the G2 set of
ASE with random labels, which do not change speed; edges are all pairs within 5 Å, at most 20 nearest neighbours of an
atom. A training step computes energies, forces (derivatives of the energies, unless the name says `direct`), a loss of
mean absolute errors, its gradient and an update by AdamW; inference computes energies and forces. With `--branches` the
structures are divided among as many branches; packages without branches ignore it. All models run in float32, in turn
on the same batch; only training steps whose name says so are compiled. Times are of the processor. Memory is the peak
of a process of its own, less its memory before the model was built; of compiled steps it is not separable from that
of the compiler. Accuracy is not compared."""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from benchmarks.against.other_models import CUTOFF, OTHERS, Made
from torch import Tensor, nn

import ramify
from ramify.batches.batch import Batch, BatchPart
from ramify.batches.padding import Padding, tile_for
from ramify.bench.profiling.resident import forget_peak, peak_bytes
from ramify.model.build import LabelSpread, build_parts
from ramify.model.compiled import CompiledModel
from ramify.neighbors.edges import find_edges
from ramify.recipe import load_recipe, parse_recipe
from ramify.structures import Structures
from ramify.system import process_memory

NEIGHBORS = 20
EGNN = {"kind": "egnn", "layers": 4, "width": 128, "vector_channels": 16, "message_layers": 1}
UNCOMPILED: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "ramify five": ("five", "conservative", None),
    "ramify egnn 4 x 128": ("five", "conservative", EGNN),
    "ramify egnn 4 x 128, direct": ("five", "direct", EGNN),
    "ramify paper": ("paper", "conservative", None),
    "ramify paper, direct": ("paper", "direct", None),
}
OWN = {name + suffix: (*of, bool(suffix)) for name, of in UNCOMPILED.items() for suffix in ("", ", compiled")}
"""Name -> (recipe, kind of forces, keys of another encoder, whether steps are compiled)."""
COMPILED = {name for name, (*_, compiled) in OWN.items() if compiled}


def molecules(count: int, branches: int) -> Batch:
    """A batch of `count` molecules of at least six atoms, in as many parts as there are branches."""
    rng = np.random.default_rng(0)
    kinds = [atoms for atoms in map(molecule, g2.names) if len(atoms) >= 6]
    images: list[Atoms] = [kinds[k % len(kinds)].copy() for k in range(count)]
    for atoms in images:
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
    given = Structures.from_ase(images)
    structures = Structures.make(
        n_atoms=given.n_atoms,
        numbers=given.numbers,
        positions=given.positions,
        energy=rng.normal(0, 1, len(given)),
        forces=rng.normal(0, 1, given.positions.shape),
    )
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(count), branches)):
        own = structures.take(rows)
        name = f"b{number}"
        parts.append(BatchPart(name, name, own, find_edges(own, CUTOFF, NEIGHBORS), np.zeros(119)))
    return Batch.make(parts)


def own(recipe: str, forces: str, encoder: dict[str, Any] | None, compiled: bool, batch: Batch) -> Made:
    """The model of a recipe, with the branches of a batch."""
    content = load_recipe(recipe).model_dump(mode="json")
    if encoder is not None:
        content["model"]["encoder"] = encoder
    content["model"]["force_head"]["kind"] = forces
    options = parse_recipe(content, "benchmark").model
    model = build_parts(options, {segment.name: [LabelSpread(1.0, 1.0, 1)] for segment in batch.segments})

    if compiled:
        names = tuple(model.branches)
        padded = Padding(names, tile_for(len(batch.numbers), len(names)) if forces == "conservative" else 1)(batch)
        program, real = CompiledModel(model, "default"), ~torch.isnan(padded.forces[:, 0])

    def predict(_: nn.Module, now: Batch, positions: Tensor) -> tuple[Tensor, Tensor]:
        if compiled and model.training:
            found = program(padded)
            return found.energy[: len(now.n_atoms)] * now.n_atoms, found.forces[real]
        found = model(now)  # differentiates by positions itself
        return found.energy * now.n_atoms, found.forces

    return model, predict


class Stepper:
    """Training steps and inference of one model."""

    def __init__(self, name: str, batch: Batch) -> None:
        torch.manual_seed(0)
        self.model, self._predicted = own(*OWN[name], batch) if name in OWN else OTHERS[name][1](batch)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def _predict(self, batch: Batch, *, train: bool) -> tuple[Tensor, Tensor]:
        self.model.train(train)
        positions = batch.positions.detach().requires_grad_()
        found = self._predicted(self.model, batch, positions)
        if isinstance(found, tuple):
            return found
        (slope,) = torch.autograd.grad(found.sum(), positions, create_graph=train)
        return found, -slope

    def step(self, batch: Batch) -> None:
        """Forward pass, backward pass and update."""
        energy, forces = self._predict(batch, train=True)
        loss = (energy / batch.n_atoms - batch.energy).abs().mean() + 10.0 * (forces - batch.forces).abs().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def infer(self, batch: Batch) -> None:
        """Energies and forces."""
        self.model.requires_grad_(False)
        self._predict(batch, train=False)
        self.model.requires_grad_(True)


def installed(name: str) -> str | None:
    """Version of the package of a model; None where it is not installed."""
    if name in OWN:
        return ramify.__version__
    try:
        return version(OTHERS[name][0])
    except PackageNotFoundError:
        return None


def measure(names: list[str], batch: Batch, repeats: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Processor seconds by model with alternating steps, and the models that failed with their reasons. Three steps are
    untimed, since TorchScript optimises in them."""
    steppers: dict[str, Stepper] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            stepper = Stepper(name, batch)
            for _ in range(3):
                stepper.step(batch)
                stepper.infer(batch)
            steppers[name] = stepper
        except Exception as error:  # of another package, in any of its versions
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    taken: dict[str, dict[str, list[float]]] = {name: {"step": [], "infer": []} for name in steppers}
    for _ in range(repeats):
        for name, stepper in steppers.items():
            taken[name]["step"].append(timed(stepper.step, batch))
            taken[name]["infer"].append(timed(stepper.infer, batch))
    first = next(iter(steppers))
    found: dict[str, dict[str, Any]] = {}
    for name, stepper in steppers.items():
        found[name] = {"version": installed(name), "weights": sum(p.numel() for p in stepper.model.parameters())}
        for kind, times in taken[name].items():
            pairs = zip(times, taken[first][kind], strict=True)
            found[name] |= {
                f"{kind}, s": statistics.median(times),
                f"{kind}, ratio": statistics.median(a / b for a, b in pairs),
            }
    return found, failed


def timed(run: Callable[[Batch], None], batch: Batch) -> float:
    """Processor seconds of a call."""
    began = time.process_time()
    run(batch)
    return time.process_time() - began


def memory_of(name: str, batch: Batch) -> int:
    """Bytes that model and training step of `name` take at their peak, in this process."""
    if name in OTHERS:
        OTHERS[name][1](batch)  # imports the package before the measurement
    before = process_memory()
    forget_peak()
    stepper = Stepper(name, batch)
    for _ in range(2):
        stepper.step(batch)
    return peak_bytes(torch.device("cpu")) - before


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| model | version | weights | training step, s | ratio | inference, s | ratio | memory of a step, MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, of in found.items():
        numbers = [f"{of[f'{kind}, s']:.3g} | {of[f'{kind}, ratio']:.2f}" for kind in ("step", "infer")]
        memory = f"{of['memory'] / 1e6:.0f}" if "memory" in of else ""
        lines.append(f"| {name} | {of['version']} | {of['weights']:,} | {' | '.join(numbers)} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the arguments, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", choices=[*OWN, *OTHERS], default=[*UNCOMPILED, *OTHERS])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--branches", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    batch = molecules(given.batch, given.branches)
    if given.memory_of:
        print(memory_of(given.memory_of, batch))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    there = [name for name in given.models if installed(name) is not None]
    absent = {name: f"{OTHERS[name][0]} is not installed" for name in given.models if name not in there}
    found, failed = measure(there, batch, given.repeats)
    for name in () if given.no_memory else set(found) - COMPILED:
        sizes = ["--batch", str(given.batch), "--branches", str(given.branches)]
        command = [sys.executable, "-m", "benchmarks.against", "-", "--memory-of", name, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name]["memory"] = int(done.stdout.split()[-1])
    about = {"structures": given.batch, "branches": given.branches, "atoms": len(batch.numbers)}
    about |= {"edges": len(batch.receiver), "threads": torch.get_num_threads()}
    content = {**about, "torch": torch.__version__, "models": found, "left_out": absent | failed}
    (given.out / "against.json").write_text(json.dumps(content, indent=1))
    lines = [f"- {name}: {why}" for name, why in content["left_out"].items()]
    size = ", ".join([*(f"{value} {name}" for name, value in about.items()), f"PyTorch {torch.__version__}"])
    page = "\n".join([size, "", table(found), *(["", "Left out:", *lines] if lines else [])])
    (given.out / "against.md").write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
