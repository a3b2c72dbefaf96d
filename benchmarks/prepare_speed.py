"""Speed of `prepare` with a large file in the layout of ANI-1x, all stages included. Prints JSON.

The file repeats the rows of the embedded corpus with small noise on the positions; the energy follows to first order
(dE = -F dx), so that no row is a duplicate and the energy-force slope stays 1. Preparation runs in a separate process
with one thread; the source file is read before, so that the disk is not measured.

    OMP_NUM_THREADS=1 python benchmarks/prepare_speed.py --structures 400000 --mptrj-mb 300 --workers 2

`--mptrj-mb` also prepares a large file in the layout of MPtrj, and compares with parsing the same file. Its atomic
positions are random, so the gates on distances and energies have wide limits; they are still evaluated.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from read_sources import make_mptrj, measured, parse

from ramify.files import sha256
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.prepare.workers import start_workers
from ramify.sources.formats import formats

NOISE = 0.03
"""Å, standard deviation of each coordinate."""
ROWS_AT_ONCE = 20_000


def make_file(path: Path, structures: int) -> int:
    """Writes at least `structures` usable rows, equally many of every composition; returns their number."""
    rng = np.random.default_rng(0)
    made = 0
    with h5py.File(FILES["ani1x_mini"]) as source, h5py.File(path, "w") as target:
        groups = {name: _usable(group) for name, group in source.items()}
        times = -(-structures // sum(len(energy) for _, energy, _ in groups.values()))
        for name, (positions, energy, forces) in groups.items():
            rows = times * len(energy)
            group = target.create_group(name)
            group["atomic_numbers"] = source[name]["atomic_numbers"][()]
            x = group.create_dataset("coordinates", (rows, *positions.shape[1:]), "f4")
            e = group.create_dataset("wb97x_dz.energy", (rows,), "f8")
            f = group.create_dataset("wb97x_dz.forces", (rows, *forces.shape[1:]), "f4")
            for start in range(0, rows, ROWS_AT_ONCE):
                some = np.arange(start, min(start + ROWS_AT_ONCE, rows))
                at, block = some % len(energy), slice(start, start + ROWS_AT_ONCE)
                moved = rng.normal(0, NOISE, (len(some), *positions.shape[1:]))
                x[block], f[block] = positions[at] + moved, forces[at]
                e[block] = energy[at] - np.einsum("rac,rac->r", forces[at], moved)
            made += rows
    return made


WIDE_GATES = {"gates": {"min_distance": 0, "energy_outlier": 1e9}}


def prepare(source: Path, stores: Path, name: str = "ani1x", workers: int = 1) -> dict[str, Any]:
    """Prepares the file; returns time, memory and the resulting numbers."""
    keys = {"format": name, "path": str(source)} | (WIDE_GATES if name == "mptrj" else {})
    options = formats()[name].options.model_validate(keys)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with start_workers(workers) as started:
        list(started.results(abs, range(4 * workers)))  # starting the processes is not measured
        wall, cpu = time.perf_counter(), time.process_time()
        manifest = prepare_dataset(name, options, stores, base=Path(), workers=started)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "structures": manifest.structures,
        "atoms": sum(split.atoms for split in manifest.splits.values()),
        "dropped": manifest.dropped,
        "slope": manifest.consistency.slope,
        "wall_s": wall,
        "cpu_s": cpu,
        "structures_per_s": manifest.structures / wall,
        "structures_per_cpu_s": manifest.structures / cpu,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rss_before_mib": before / 1024,
    }


def alone() -> ProcessPoolExecutor:
    """A separate process, so that its peak memory is known."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--structures", type=int, default=400_000)
    arguments.add_argument("--mptrj-mb", type=float, default=0, metavar="MB")
    arguments.add_argument("--workers", type=int, default=1, help="reading processes; processor time is of one")
    arguments.add_argument("--folder", type=Path, help="folder for temporary files")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        source = Path(name) / "ani1x-large.h5"
        rows = make_file(source, options.structures)
        sha256(source)  # into the page cache
        with alone() as pool:
            result = pool.submit(prepare, source, Path(name) / "stores", "ani1x", options.workers).result()
        result = {"ani1x": {"rows": rows, "file_mb": source.stat().st_size / 1e6, **result}}
        if options.mptrj_mb:
            source = Path(name) / "mptrj.json"
            make_mptrj(source, options.mptrj_mb)
            with alone() as pool:
                what = (source, Path(name) / "stores", "mptrj", options.workers)
                result["mptrj"] = pool.submit(prepare, *what).result()
            result["mptrj_parse_only"] = measured(parse, source)
            over = result["mptrj"]["wall_s"] / result["mptrj_parse_only"]["wall_s"]
            result["mptrj"]["wall_s_over_parse_only"] = over
        print(json.dumps(result, indent=1))


def _usable(group: h5py.Group) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, energies and forces of the rows that have all labels."""
    energy, forces = group["wb97x_dz.energy"][()], group["wb97x_dz.forces"][()].astype(np.float64)
    labelled = np.isfinite(energy) & np.isfinite(forces).all(axis=(1, 2))
    return group["coordinates"][()].astype(np.float64)[labelled], energy[labelled], forces[labelled]


if __name__ == "__main__":
    main()
