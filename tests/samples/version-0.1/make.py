"""Wrote the inputs of these samples: strained copper and gold, and their alloy, by ASE's EMT."""

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write

rng = np.random.default_rng(0)
for name, symbols in {"metals": ["Cu", "Au"], "mixed": ["Cu", "Ag", "Pt"]}.items():
    frames = []
    for group in range(12):
        atoms = bulk(symbols[group % len(symbols)], cubic=True)
        if name == "mixed" and group % 2:
            atoms.symbols[0] = symbols[(group + 1) % len(symbols)]
        for _ in range(2):
            frame = atoms.copy()
            frame.set_cell(frame.cell * (1 + 0.02 * rng.standard_normal()), scale_atoms=True)
            frame.rattle(0.08, seed=int(rng.integers(1e6)))
            frame.calc = EMT()
            frame.info["group"] = f"{name}-{group}"
            frame.get_potential_energy(), frame.get_forces(), frame.get_stress()
            frames.append(frame)
    write(f"{name}.xyz", frames)
