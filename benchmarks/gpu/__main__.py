"""All measurements on one NVIDIA GPU within a time limit; `benchmarks/gpu.sh` prepares the packages and starts this.

    python -m benchmarks.gpu OUT            # writes OUT/gpu.json and OUT/gpu.md
    python -m benchmarks.gpu OUT --dry      # every part on the CPU in seconds, to check that they run

Every part is a process of its own with a share of the time; a part that fails or takes too long leaves its error in the
results, and the others follow.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.page import page

LIMITS = {
    "machine": 20,
    "tests": 80,
    "steps": 170,
    "edges": 30,
    "loader": 40,
    "calculator": 70,
    "memory": 35,
    "ranks": 35,
}
"""Seconds of each part; eight minutes together, in the order of their use if the time of the machine ends early."""

DRY_LIMIT = 300
"""Seconds of a part with `--dry`, on a slow processor."""


def run_part(name: str, folder: Path, *, dry: bool) -> dict[str, Any]:
    """Runs one part in a new process; its result, or its error."""
    target = folder / f"{name}.json"
    target.unlink(missing_ok=True)
    limit = DRY_LIMIT if dry else LIMITS[name]
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, str(target), str(limit), *(["--dry"] if dry else [])]
    began = time.perf_counter()
    with (folder / f"{name}.log").open("wb") as log:
        try:
            status = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False
            ).returncode
            why = f"status {status}"
        except subprocess.TimeoutExpired:
            status, why = 1, f"longer than {limit} s"
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    if status:
        lines = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        found["error"] = f"{why}: {lines[-1] if lines else 'no output'}"
    return {**found, "seconds_of_part": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Parses the arguments and runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1" if given.dry else "8")
    results: dict[str, Mapping[str, Any]] = {}
    for name in given.parts:
        results[name] = run_part(name, given.out, dry=given.dry)
        print(f"{name}: {results[name].get('error', 'done')}, {results[name]['seconds_of_part']} s", flush=True)
        (given.out / "gpu.json").write_text(json.dumps({"dry": given.dry, **results}, indent=1))
        (given.out / "gpu.md").write_text(page(results, dry=given.dry))
    if given.dry and any("error" in found for found in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
