"""Conservation of energy by a conservative branch: NVE from a relaxed structure. Prints JSON.

    python benchmarks/nve_drift.py --model runs/mtl --branch orca_pbe --structures five/orca_pbe/test.extxyz --index 0

The structure is relaxed first, then simulated with velocity Verlet. The drift is the slope of a straight line through
the total energies of all steps.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import ase.io
import torch

import ramify
from ramify.inference.jobs.dynamics import DynamicsOptions, simulate
from ramify.inference.jobs.relax import RelaxOptions, relax


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument("--branch", required=True)
    arguments.add_argument("--structures", type=Path, required=True)
    arguments.add_argument("--index", type=int, default=0)
    arguments.add_argument("--precision", choices=["fp32", "fp64"])
    arguments.add_argument("--temperature", type=float, default=300.0, help="K")
    arguments.add_argument("--timestep", type=float, default=0.5, help="fs")
    arguments.add_argument("--steps", type=int, default=20_000)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    calculator = ramify.Calculator(ramify.load(options.model, precision=options.precision), options.branch)
    start = relax(ase.io.read(options.structures, options.index), calculator, RelaxOptions(fmax=0.01))
    atoms = start.atoms.copy()
    # twice the temperature: half of the kinetic energy becomes potential energy
    how = DynamicsOptions(temperature=2 * options.temperature, timestep=options.timestep, steps=options.steps)
    searches, begun, cpu = calculator.neighbors.searches, time.perf_counter(), time.process_time()
    report = simulate(atoms, calculator, how)
    result = {
        "structure": str(atoms.symbols),
        "relaxed": start.converged,
        **asdict(report),
        "timestep_fs": options.timestep,
        "dtype": str(calculator.model.dtype),
        "neighbour_searches": calculator.neighbors.searches - searches,
        "wall_ms_per_step": 1e3 * (time.perf_counter() - begun) / options.steps,
        "cpu_ms_per_step": 1e3 * (time.process_time() - cpu) / options.steps,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
