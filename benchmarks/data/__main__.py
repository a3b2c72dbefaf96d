"""Reading speed of each kind of store and limits of the machine, as JSON.

OMP_NUM_THREADS=1 python -m benchmarks.data --parts mapped,adios --out data.json
"""

import argparse
import sys
from pathlib import Path

from benchmarks.data.parts import PARTS, DataBench

from ramify.files import write_json


def main() -> None:
    """Parses the arguments, measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="mapped,adios,distributed,waiting", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--folder", type=Path, default=Path(), help="folder for temporary stores")
    parser.add_argument("--structures", type=int, default=1_000_000, help="molecules of the store, 600 bytes each")
    parser.add_argument("--large", type=int, default=24_000_000, help="structures of the store of the part scale")
    parser.add_argument("--ranks", default="2,4", help="numbers of processes of the part distributed")
    parser.add_argument("--width", type=int, default=866, help="width of the encoder in the part waiting")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the result")
    given = parser.parse_args()
    bench = DataBench(
        folder=given.folder,
        structures=given.structures,
        large=given.large,
        ranks=[int(part) for part in given.ranks.split(",")],
        width=given.width,
        say=lambda text: print(text, file=sys.stderr),
    )
    result = bench.run([part.strip() for part in given.parts.split(",")])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, result)


if __name__ == "__main__":
    main()
