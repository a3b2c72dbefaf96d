"""Validation errors against processor time on the benchmark `five`: encoders, parts of `many_body`, and levers.

    python benchmarks/accuracy/encoders.py kinds --out accuracy    # in the folder that contains `five`
    python benchmarks/accuracy/encoders.py parts levers --out accuracy --passes 2
    python benchmarks/accuracy/encoders.py levers --recipe acac --out acac-levers --passes 20
    python benchmarks/accuracy/encoders.py kinds parts levers --out accuracy --passes 1 2 4 --only report

Each point is a training of its own by `ramify train RECIPE`, with the whole schedule over its passes, compiled (unless
`--plain`: compiling each of the `parts` takes longer than a pass), on one thread. A training that has ended is kept, so
the program can be stopped and repeated. Only validation splits are used.

Writes OUT/accuracy.json, accuracy.md and accuracy.svg: geometric means of the errors of energies and of forces over the
five datasets, relative to the first setting of the group with as many passes; processor time of the whole training with
a warm cache of compiled programs, which a training of one step fills before. A pass takes 1 to 2 minutes of one core.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure

GROUPS: dict[str, dict[str, list[str]]] = {
    "kinds": {
        "many_body": [],
        "egnn": ["model.encoder={kind: egnn, vector_channels: 16, message_layers: 1}"],
        "painn": ["model.encoder={kind: painn, layers: 3}"],
        "tensornet": ["model.encoder={kind: tensornet, layers: 2, channels: 64}"],
        "schnet": ["model.encoder={kind: schnet}"],
    },
    "parts": {
        "many_body": [],
        "l_max: 1": ["model.encoder.l_max=1"],
        "l_max: 0": ["model.encoder.l_max=0"],
        "body_order: 3": ["model.encoder.body_order=3"],
        "body_order: 2": ["model.encoder.body_order=2"],
        "layers: 1": ["model.encoder.layers=1"],
        "layers: 3": ["model.encoder.layers=3"],
        "channels: 32": ["model.encoder.channels=32"],
        "channels: 96": ["model.encoder.channels=96"],
        "passed: 0": ["model.encoder.passed=0"],
        "passed: 32": ["model.encoder.passed=32"],
        "gates: false": ["model.encoder.gates=false"],
        "width: 192": ["model.encoder.width=192"],
        "radial: 6": ["model.encoder.radial=6"],
        "radial: 12": ["model.encoder.radial=12"],
    },
    "levers": {
        "recipe": [],
        "optimizer.kind: adamw, lr: 2e-3": ["optimizer.kind=adamw", "optimizer.lr=2e-3"],
        "optimizer.lr: 2e-3": ["optimizer.lr=2e-3"],
        "optimizer.lr: 4e-3": ["optimizer.lr=4e-3"],
        "objective.form: l2norm": ["objective.form=l2norm"],
        "objective.form: huber": ["objective.form=huber"],
        "objective.energy: 8": ["objective.energy=8"],
        "optimizer.ema: 0.99": ["optimizer.ema=0.99"],
        "train.batch: 16": ["train.batch=16"],
        "train.precision: fp64": ["train.precision=fp64"],
    },
}
"""By group and setting, keys of the recipe; the first setting of a group is the recipe itself."""
LABELS = ("energy", "forces")


@dataclass(frozen=True)
class Point:
    """One training: passes, processor time in minutes, geometric means of the errors (eV/atom, eV/Å), the metric."""

    group: str
    setting: str
    passes: float
    minutes: float
    energy: float
    forces: float
    metric: float


def train(recipe: str, folder: Path, keys: Sequence[str], *, plain: bool) -> None:
    """Trains in a process of its own, unless it is done; writes its processor time into the folder."""
    if (folder / "seconds.json").exists():
        return
    common = ["train.threads=1", f"train.compile={'none' if plain else 'default'}", f"train.log_every={10**6}"]
    command = [sys.executable, "-m", "ramify", "train", recipe, "--run-dir", str(folder), "--continue", *common, *keys]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (folder / "seconds.json").write_text(json.dumps(seconds))


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The `val` lines of metrics.jsonl."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "val"]


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def point(folder: Path, group: str, setting: str, passes: float) -> Point:
    """The last evaluation of a training."""
    last, minutes = evaluations(folder)[-1], json.loads((folder / "seconds.json").read_text()) / 60
    energy, forces = (mean([found[f"{label}_mae"] for found in last["datasets"].values()]) for label in LABELS)
    return Point(group, setting, passes, minutes, energy, forces, last["metric"])


def table(points: Sequence[Point]) -> Iterator[str]:
    """Lines of Markdown: errors and time relative to the first setting with as many passes."""
    yield "| setting | passes | energy | forces | time | metric |"
    yield "|---|---:|---:|---:|---:|---:|"
    for one in points:
        base = next(p for p in points if p.passes == one.passes)
        ratios = [getattr(one, name) / getattr(base, name) for name in (*LABELS, "minutes")]
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        yield f"| {one.setting} | {one.passes:g} | {shown} | {one.metric:.3f} |"


def draw(points: Sequence[Point], path: Path) -> None:
    """Errors against time, a line for each setting; both axes logarithmic."""
    figure = matplotlib.figure.Figure(figsize=(8, 3.6), layout="constrained")
    for axes, label, unit in zip(figure.subplots(1, 2), LABELS, ("eV/atom", "eV/Å"), strict=True):
        for setting in dict.fromkeys(p.setting for p in points):
            own = sorted((p.minutes, getattr(p, label)) for p in points if p.setting == setting)
            axes.loglog(*zip(*own, strict=True), marker="o", label=setting)
        axes.set(xlabel="processor time, minutes of one core", ylabel=f"{label}, {unit}, geometric mean")
        axes.grid(visible=True, which="both", alpha=0.2)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Trains what is missing, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", choices=GROUPS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--recipe", default="five", help="five, acac or bpa3, in the folder that contains its files")
    parser.add_argument("--plain", action="store_true", help="without compilation; take another folder for it")
    parser.add_argument("--only", help="one setting, or `report`: trains nothing")
    given = parser.parse_args()
    run = partial(train, given.recipe, plain=given.plain)
    points: dict[str, list[Point]] = {}
    for group in given.groups:
        for passes in given.passes:
            for number, (setting, keys) in enumerate(GROUPS[group].items()):
                folder = given.out / "runs" / (f"recipe-{passes:g}" if not number else f"{group}-{number}-{passes:g}")
                if given.only in (None, setting):
                    if not given.plain:
                        run(given.out / "warm" / f"{group}-{number}", ["train.max_steps=1", *keys])
                    run(folder, [f"train.epochs={passes}", f"train.evaluate_every={passes}", *keys])
                if (folder / "seconds.json").exists():
                    points.setdefault(group, []).append(point(folder, group, setting, passes))
    text = "\n\n".join("\n".join([f"## {group}", "", *table(found)]) for group, found in points.items())
    (given.out / "accuracy.md").write_text(text + "\n")
    everything = [asdict(p) for found in points.values() for p in found]
    (given.out / "accuracy.json").write_text(json.dumps(everything, indent=1) + "\n")
    if "kinds" in points:
        draw(points["kinds"], given.out / "accuracy.svg")
    print(text)


if __name__ == "__main__":
    main()
