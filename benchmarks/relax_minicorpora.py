"""Relaxes every crystal of the embedded corpora with elements of a branch; reports convergence, or the reason for
failure. Prints JSON.

    python benchmarks/relax_minicorpora.py --model runs/mtl --branch mad

The corpora are trajectories of few materials, so many structures relax to the same crystal; `--one-each` uses the first
of each material.
"""

import argparse
import json
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import ramify
from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.jobs.relax import RelaxOptions, relax
from ramify.minicorpora import FILES
from ramify.sources.formats import formats
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

CORPORA = {"mptrj": "mptrj_mini", "alexandria": "alexandria_mini"}
"""Formats of the crystals, and their files."""


def crystals(name: str) -> Structures:
    """All structures of a corpus."""
    form, path = formats()[name], FILES[CORPORA[name]]
    options = form.options.model_validate({"format": name, "path": str(path)})
    return Structures.concatenate(form.read(path, options, Quarantine()))


def relaxed(structures: Structures, calculator: Calculator, options: RelaxOptions, one_each: bool) -> dict[str, Any]:
    """Results for a corpus."""
    counts: Counter[str] = Counter()
    steps, others, seen = [], [], set()
    begun = time.process_time()
    for k in range(len(structures)):
        if one_each and structures.group[k] in seen:
            continue
        seen.add(structures.group[k])
        atoms = structures.to_ase(k)
        counts["crystals"] += 1
        try:
            found = relax(atoms, calculator, options)
        except RamifyError as error:
            counts[str(error).partition(":")[0]] += 1
            continue
        counts["covered"] += 1
        counts["converged"] += found.converged
        steps.append(found.steps)
        if found.why:
            others.append({"crystal": f"{structures.name(k)} {atoms.symbols}", "why": found.why})
    return {
        **counts,
        "mean_steps": sum(steps) / max(len(steps), 1),
        "cpu_s": time.process_time() - begun,
        "why": others,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument("--branch", required=True)
    arguments.add_argument("--precision", choices=["fp32", "fp64"])
    arguments.add_argument("--fmax", type=float, default=0.05, help="eV/Å")
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--optimizer", default="fire")
    arguments.add_argument("--cell", action="store_true")
    arguments.add_argument("--one-each", action="store_true")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RamifyWarning)
    calculator = Calculator(ramify.load(chosen.model, precision=chosen.precision), chosen.branch)
    options = RelaxOptions(fmax=chosen.fmax, steps=chosen.steps, cell=chosen.cell, optimizer=chosen.optimizer)
    result = {name: relaxed(crystals(name), calculator, options, chosen.one_each) for name in CORPORA}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
