"""Latency of an ASE calculator, speed of molecular dynamics and of batched prediction, plain and compiled. Prints JSON.

    OMP_NUM_THREADS=1 python benchmarks/calculator.py five
    OMP_NUM_THREADS=1 python benchmarks/calculator.py five --encoder '{kind: many_body}' --modes plain compiled
    OMP_NUM_THREADS=1 python benchmarks/calculator.py five --device cuda

The model of the recipe has random weights, which do not change its speed. Times are of the processor on a CPU, and of
the clock on other devices; the modes and a matrix product alternate, and each figure is a median. The molecule has 21
atoms, the crystal is copper."""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator as AseCalculator

from ramify.elements import SYMBOLS
from ramify.inference.branches import BranchInfo, DatasetInfo
from ramify.inference.integrations.ase import Calculator
from ramify.inference.model import Model
from ramify.inference.saved import Saved
from ramify.model.build import LabelSpread, build_parts
from ramify.recipe import load_recipe, parse_recipe

MODES = ("plain", "compiled")
PRODUCT = 1024
"""Rows and columns of the matrix product."""
MOVE = 1e-3
"""Å, standard deviation of the displacements between two calculations, as in a simulation."""


def random_model(recipe: str, encoder: Mapping[str, Any] | None = None, device: str = "cpu") -> Model:
    """A model with one branch `b` and weights of ordinary size, in float32.

    Args:
        recipe: its model.
        encoder: keys of `model.encoder` instead of the recipe's.
        device: of the model.
    """
    content = load_recipe(recipe).model_dump(mode="json")
    if encoder is not None:
        content["model"]["encoder"] = dict(encoder)
    options = parse_recipe(content, "benchmark").model
    forces = options.force_head.kind
    spread = LabelSpread(0.5, 0.8, 1000)
    network = build_parts(options, {"b": [spread]}).float().requires_grad_(False).to(device)
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))  # fresh heads predict zero
    info = DatasetInfo(
        name="b",
        theory="",
        references=dict.fromkeys(SYMBOLS[1:90], 0.0),
        rank=1,
        spread=spread,
        structures=1000,
        atoms=10_000,
        min_distance=None,
        manifest_sha256="",
    )
    weights = dict(network.state_dict())
    saved = Saved(Path(), {}, "fp32", {"b": {"b": info}}, weights, {}, 0, None, "")
    return Model({"b": BranchInfo("b", {"b": info}, forces)}, network, options, saved)


def molecule_of_21() -> Atoms:
    """Trans-butane and seven atoms of ethanol, 6 Å apart."""
    first, second = molecule("trans-butane"), molecule("CH3CH2OH")
    second.positions += (0.0, 0.0, 6.0)
    return (first + second)[:21]


def single_points(atoms: Atoms, calculator: AseCalculator) -> Callable[[], object]:
    """A function that moves the atoms a little and computes energy and forces."""
    rng = np.random.default_rng(0)
    atoms = atoms.copy()
    atoms.calc = calculator

    def run() -> object:
        atoms.positions += rng.normal(0.0, MOVE, atoms.positions.shape)
        return atoms.get_potential_energy(), atoms.get_forces()

    return run


def cases(model: Model, copper: int, batch: int) -> dict[str, Callable[[], object]]:
    """The timed functions by name; `copper` is the number of cubic cells per axis, `batch` that of molecules."""
    crystal = bulk("Cu", cubic=True) * (copper, copper, copper)
    crystal.rattle(0.1, seed=0)
    molecules = [molecule_of_21() for _ in range(batch)]
    for seed, atoms in enumerate(molecules):
        atoms.rattle(0.02, seed=seed)
    return {
        "molecule of 21 atoms, ms": single_points(molecule_of_21(), Calculator(model)),
        f"MD step of {len(crystal)} Cu atoms, ms": single_points(crystal, Calculator(model)),
        f"{batch} molecules in batches, ms": lambda: model.predict(molecules),
    }


def measure(model: Model, modes: list[str], copper: int, batch: int, repeats: int) -> dict[str, Any]:
    """Median milliseconds of every case and mode, alternating, and ratios to the first mode, pair by pair; GFLOP/s of a
    matrix product in float32 between them."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    forms = {mode: cases(dataclasses.replace(model, compiled=mode == "compiled"), copper, batch) for mode in modes}
    began = time.perf_counter()
    for functions in forms.values():
        for run in functions.values():
            run()
    found: dict[str, Any] = {"first calls, s": time.perf_counter() - began}
    square, rates = torch.randn(PRODUCT, PRODUCT, device=model.device), []
    for case in forms[modes[0]]:
        taken: dict[str, list[float]] = {mode: [] for mode in modes}
        for _ in range(repeats):
            start = clock()
            (square @ square)[0, 0].item()
            rates.append(2e-9 * PRODUCT**3 / (clock() - start))
            for mode in modes:
                start = clock()
                forms[mode][case]()
                taken[mode].append(1e3 * (clock() - start))
        found[case] = {mode: statistics.median(times) for mode, times in taken.items()}
        for mode in modes[1:]:
            ratios = [a / b for a, b in zip(taken[modes[0]], taken[mode], strict=True)]
            found[case][f"{modes[0]} / {mode}"] = statistics.median(ratios)
    return found | {"matrix product, GFLOP/s": statistics.median(rates)}


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--encoder", help="keys of `model.encoder` as YAML, instead of the recipe's")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--copper", type=int, default=3, help="cubic cells of four atoms per axis")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    encoder = None if given.encoder is None else yaml.safe_load(given.encoder)
    model = random_model(given.recipe, encoder, given.device)
    found = measure(model, given.modes, given.copper, given.batch, given.repeats)
    print(json.dumps({"threads": torch.get_num_threads(), "device": given.device, **found}, indent=1))


if __name__ == "__main__":
    main()
