"""Readers: speed beside merely parsing the same file, and peak memory, for every kind of file that grows.

    python -m benchmarks.readers                       # speed, on files of 20 MB
    python -m benchmarks.readers --mb 2000 --no-parse  # memory, on files of 2 GB, half an hour per core

Files are made in a temporary folder, one at a time (`--folder` chooses it), and deleted. Each reading and each parsing
runs in a process of its own. `parse` is the library below the reader without any conversion (see `parse.py`). Memory is
the largest private memory of the process, without mapped pages of the file, which the kernel frees when others need
memory; `resident_mib` contains them. About 60 MB are those of Python and the libraries. Prints JSON, and a table.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.readers.binary_files import (
    write_ase_db,
    write_ase_traj,
    write_deepmd,
    write_deepmd_lmdb,
    write_hdf5,
    write_npz,
    write_parquet,
    write_qcml,
)
from benchmarks.readers.measure import measured, read
from benchmarks.readers.parse import parse
from benchmarks.readers.pool import ATOMS
from benchmarks.readers.program_outputs import write_espresso, write_outcar, write_vasprun
from benchmarks.readers.text_files import RECORDS, write_extxyz, write_json, write_oc20

HDF5 = ("ani1", "ani1x", "ani2x", "spice", "qm7x", "transition1x")
KINDS: dict[str, tuple[str, Callable[[Path, float], dict[str, Any]]]] = {
    **{name: ("a.h5", partial(write_hdf5, name)) for name in HDF5},
    **{name: ("a.json", partial(write_json, name)) for name in RECORDS},
    "extxyz": ("a.extxyz", write_extxyz),
    "oc20": ("a.extxyz.xz", write_oc20),
    "npz": ("a.npz", write_npz),
    "deepmd": ("type.raw", write_deepmd),
    "deepmd_lmdb": ("data.mdb", write_deepmd_lmdb),
    "parquet": ("a.parquet", write_parquet),
    "qcml": ("a.tfrecord", write_qcml),
    "ase_db.db": ("a.db", write_ase_db),
    "ase_db.json": ("a.json", write_ase_db),
    "ase_db.aselmdb": ("a.aselmdb", write_ase_db),
    "vasp.xml": ("vasprun.xml", write_vasprun),
    "vasp.OUTCAR": ("OUTCAR", write_outcar),
    "espresso": ("pw.out", write_espresso),
    "ase_traj": ("a.traj", write_ase_traj),
}
"""By kind of file: name, and its writer."""


def compare(kind: str, folder: Path, megabytes: float, *, parsed: bool) -> dict[str, float]:
    """Makes a file of one kind and measures its reading and parsing."""
    name, write = KINDS[kind]
    keys = write(folder / name, megabytes * 1e6)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    found = measured(read, kind, folder / name, keys)
    assert found["structures"] > 0
    found |= {"file_mb": size, "mb_per_cpu_s": size / found["cpu_s"]}
    found["structures_per_cpu_s"] = found["structures"] / found["cpu_s"]
    if parsed:
        found["parse_cpu_s"] = measured(parse, kind, folder / name)["cpu_s"]
        found["over_parse"] = found["cpu_s"] / found["parse_cpu_s"]
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """A row for each kind of file."""
    lines = [
        "| file | MB | structures/s | MB/s | reading over parsing | private memory, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, r in results.items():
        over = f"{r['over_parse']:.1f}" if "over_parse" in r else "–"
        lines.append(
            f"| `{kind}` | {r['file_mb']:.0f} | {r['structures_per_cpu_s']:,.0f} | {r['mb_per_cpu_s']:.0f} | {over} | "
            f"{r['private_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--formats", nargs="+", choices=KINDS, default=list(KINDS))
    arguments.add_argument("--mb", type=float, default=20, help="size of each file")
    arguments.add_argument("--atoms", type=int, nargs=2, default=[4, 60], help="fewest and most atoms of a structure")
    arguments.add_argument("--no-parse", action="store_true", help="measures reading only")
    arguments.add_argument("--folder", type=Path, help="folder for the temporary files")
    options = arguments.parse_args()
    ATOMS[:] = options.atoms
    free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if free < 3e6 * options.mb:
        raise SystemExit(f"{free / 1e6:.0f} MB are free, {3 * options.mb:.0f} are needed")
    results: dict[str, dict[str, float]] = {}
    for kind in options.formats:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            results[kind] = compare(kind, Path(folder), options.mb, parsed=not options.no_parse)
        print(json.dumps({kind: results[kind]}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
