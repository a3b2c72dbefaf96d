"""Speed of the readers: ANI-1x and QM7-X in structures/s, MPtrj compared with parsing the same file. Prints JSON.

The large files are made from the embedded corpora (with small noise on the positions, so that no two rows are equal)
in a temporary folder; this time is not included. Each reading runs in a separate process, so that its peak memory is
known.

    python benchmarks/read_sources.py --ani1x 500000 --qm7x 20000 --mptrj-mb 300
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ramify
from ramify.sources.formats import formats
from ramify.sources.parsing.json_stream import items
from ramify.sources.quarantine import Quarantine

CORPORA = Path(ramify.__file__).parent / "minicorpora"


def make_ani1x(path: Path, structures: int) -> None:
    """Tiles the rows of every composition until there are `structures` rows."""
    rng = np.random.default_rng(0)
    with h5py.File(CORPORA / "ani1x_mini/ani1x-mini.h5") as source, h5py.File(path, "w") as target:
        times = -(-structures // sum(len(g["coordinates"]) for g in source.values()))
        for name, group in source.items():
            made = target.create_group(name)
            made["atomic_numbers"] = group["atomic_numbers"][()]
            for key in ("coordinates", "wb97x_dz.energy", "wb97x_dz.forces"):
                value = group[key][()]
                tiled = np.tile(value, (times, *[1] * (value.ndim - 1)))
                if key == "coordinates":
                    tiled += rng.normal(0, 1e-3, tiled.shape).astype(tiled.dtype)
                made[key] = tiled


def make_qm7x(path: Path, structures: int) -> None:
    """Repeats the molecules under new numbers until there are `structures` conformers."""
    with h5py.File(CORPORA / "qm7x_mini/1000.hdf5") as source, h5py.File(path, "w") as target:
        count = sum(len(m) for m in source.values())
        for copy in range(-(-structures // count)):
            for number, (_, molecule) in enumerate(source.items()):
                source.copy(molecule, target, name=str(copy * len(source) + number))


def make_mptrj(path: Path, megabytes: float) -> None:
    """Writes materials of 4 to 60 atoms, 8 frames each, in the layout of MPtrj, until the file has the size."""
    source = list(json.loads((CORPORA / "mptrj_mini/MPtrj_mini.json").read_text()).values())
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("{")
        for material in range(10**9):
            atoms = int(rng.integers(4, 61))
            frames = {}
            for step, frame in enumerate(source[material % len(source)].values()):
                sites = frame["structure"]["sites"]
                xyz, force = rng.uniform(0, 10, (atoms, 3)).tolist(), rng.normal(0, 0.3, (atoms, 3)).round(8).tolist()
                grown = [{**sites[i % len(sites)], "xyz": xyz[i]} for i in range(atoms)]
                frames[f"mp-{material}-0-{step}"] = frame | {
                    "structure": frame["structure"] | {"sites": grown},
                    "force": force,
                }
            file.write(("" if material == 0 else ", ") + f'"mp-{material}": ' + json.dumps(frames))
            if file.tell() > megabytes * 1e6:
                break
        file.write("}")


def read(name: str, path: Path, keys: dict[str, Any]) -> int:
    """Reads the file; returns the number of structures."""
    found = formats()[name]
    chunks = found.read(path, found.options.model_validate({"format": name, "path": str(path)} | keys), Quarantine())
    return sum(len(chunk) for chunk in chunks)


def parse(path: Path) -> int:
    """Splits and parses the JSON text only; returns the number of frames."""
    return sum(len(item.value) for item in items(path))


def measured(work: Callable[..., int], *args: Any) -> dict[str, float]:
    """Wall time, processor time and peak memory of `work` in a separate process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, args))


def _measure(work: Callable[..., int], args: tuple[Any, ...]) -> dict[str, float]:
    formats()  # imports are not part of the reading
    wall, cpu = time.perf_counter(), time.process_time()
    structures = work(*args)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rates = {"structures_per_s": structures / wall, "structures_per_cpu_s": structures / cpu}
    return {"structures": structures, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak} | rates


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--ani1x", type=int, default=0, metavar="STRUCTURES")
    arguments.add_argument("--qm7x", type=int, default=0, metavar="STRUCTURES")
    arguments.add_argument("--mptrj-mb", type=float, default=0, metavar="MB")
    arguments.add_argument("--folder", type=Path, help="folder for temporary files")
    options = arguments.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.ani1x:
            make_ani1x(folder / "ani1x.h5", options.ani1x)
            result["ani1x"] = measured(read, "ani1x", folder / "ani1x.h5", {})
            result["ani1x"]["file_mb"] = (folder / "ani1x.h5").stat().st_size / 1e6
        if options.qm7x:
            make_qm7x(folder / "qm7x.hdf5", options.qm7x)
            result["qm7x"] = measured(read, "qm7x", folder / "qm7x.hdf5", {"labels": "pbe0"})
        if options.mptrj_mb:
            path = folder / "mptrj.json"
            make_mptrj(path, options.mptrj_mb)
            result["mptrj"] = measured(read, "mptrj", path, {})
            result["mptrj_parse_only"] = measured(parse, path)
            result["mptrj"]["file_mb"] = path.stat().st_size / 1e6
            for clock in ("wall_s", "cpu_s"):
                result["mptrj"][f"{clock}_over_parse_only"] = result["mptrj"][clock] / result["mptrj_parse_only"][clock]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
