"""Searches of the recipe `five` by TPE and at random, with rungs, against the recipe itself at the same training time.

    ramify prepare five                                         # in the folder that contains `five`
    OMP_NUM_THREADS=1 python benchmarks/accuracy/searches.py --out searches

Each search has 30 trials of the space `compact`, three rungs, and the training time of 360 steps of the recipe for each
trial (`ramify search --equal time`). The recipe is trained for as many steps with three seeds. Trainings run on one
thread, without compilation, which would take longer than a trial. Searches and trainings that have ended are kept, and
the program can be stopped and repeated; `--jobs 2` runs two at a time.

Writes OUT/searches.json and searches.md: the lowest validation error of the recipe and of each search (geometric mean
over datasets and labels of error / trivial error), trials trained to the end, processor time of the whole search (left
out if it was stopped and continued), training time, and the time that the rungs saved, estimated from the time per step
of each trial that was not continued. Only validation splits are used. A search takes about half an hour of one core.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from ramify.recipe import load_recipe
from ramify.run.run import Run
from ramify.search.runs import geometric_mean

SAMPLERS = ("tpe", "random")
WARMUP = 100
"""Steps; those of the recipe, 500, are more than a trial has."""


def measured(words: Sequence[str], out: Path) -> float:
    """Processor seconds of `ramify WORDS` and its children; what it prints goes into the file `out`.

    Raises:
        RuntimeError: it fails.
    """
    with out.open("w") as text:
        process = subprocess.Popen(
            [sys.executable, "-m", "ramify", *words], stdout=text, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}")
    return used.ru_utime + used.ru_stime


def keys(steps: int, structures: float) -> list[str]:
    """Keys that trials and the recipe itself share: eleven evaluations, the first before the first rung."""
    every = steps * load_recipe("five").train.batch / structures / 11
    return [
        f"train.max_steps={steps}",
        f"train.evaluate_every={every:.5f}",
        f"schedule.warmup_steps={WARMUP}",
        "train.compile=none",
        "train.threads=1",
    ]


def of_recipe(out: Path, seed: int, shared: list[str]) -> dict[str, Any]:
    """Trains the recipe, unless it is done."""
    kept, run = out / f"recipe-{seed}.json", out / f"recipe-{seed}"
    if not kept.exists():
        words = ["train", "five", *shared, f"train.seed={seed}", "--run-dir", str(run), "--continue"]
        seconds = measured(words, out / f"recipe-{seed}.log")
        errors = [geometric_mean(entry["datasets"]) for entry in Run(run).evaluations()]
        kept.write_text(json.dumps({"error": min(e for e in errors if e is not None), "processor_s": seconds}))
    return {"name": "the recipe", "seed": seed, **json.loads(kept.read_text())}


def of_search(out: Path, sampler: str, seed: int, trials: int, shared: list[str]) -> dict[str, Any]:
    """Searches, unless it is done."""
    kept, folder = out / f"{sampler}-{seed}.json", out / f"{sampler}-{seed}"
    if not kept.exists():
        words = ["search", "five", *shared, "--space", "compact", "--trials", str(trials), "--sampler", sampler]
        words += ["--seed", str(seed), "--equal", "time", "--out", str(folder), "--json"]
        printed, continued = out / f"{sampler}-{seed}.log", folder.exists()
        seconds = measured(words, printed)
        whole = {"processor_s": None if continued else seconds}  # that of its earlier part is not known
        kept.write_text(json.dumps(json.loads(printed.read_text()) | whole))
    found = json.loads(kept.read_text())
    best = found["trials"][found["best"][0]]
    complete = [trial for trial in found["trials"] if trial["state"] == "complete"]
    return {
        "name": sampler,
        "seed": seed,
        "error": best["results"][-1]["metric"],
        "processor_s": found["processor_s"],
        "complete": len(complete),
        "training_s": found["training_seconds"],
        "saved_s": found["saved_seconds"],
        "values": best["values"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| | seed | error | trained to the end | processor minutes | training minutes | saved by rungs, minutes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        seconds = [row.get(key) for key in ("processor_s", "training_s", "saved_s")]
        shown = " | ".join("" if value is None else f"{value / 60:.1f}" for value in seconds)
        lines.append(f"| {row['name']} | {row['seed']} | {row['error']:.4f} | {row.get('complete', '')} | {shown} |")
    for name in dict.fromkeys(row["name"] for row in rows):
        lines.append(f"\n{name}: mean error {fmean(row['error'] for row in rows if row['name'] == name):.4f}")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=360, help="of the recipe; trials take as long")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="searches or trainings at the same time")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    manifests = [json.loads(path.read_text()) for path in Path("stores").glob("*/manifest.json")]
    shared = keys(given.steps, sum(manifest["splits"]["train"]["structures"] for manifest in manifests))
    with ThreadPoolExecutor(given.jobs) as pool:
        tasks = [pool.submit(of_recipe, given.out, seed, shared) for seed in range(given.repeats)]
        for seed in range(given.repeats):
            tasks += [pool.submit(of_search, given.out, s, seed, given.trials, shared) for s in SAMPLERS]
        rows = [task.result() for task in tasks]
    rows.sort(key=lambda row: (row["name"] != "the recipe", row["name"], row["seed"]))
    (given.out / "searches.json").write_text(json.dumps(rows, indent=1) + "\n")
    (given.out / "searches.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
