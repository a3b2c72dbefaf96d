"""Benefit of pre-training: fine-tuning on few structures of one dataset, compared with training from scratch.

For each of the five datasets of the benchmark `five` in turn: pre-trains on the other four, fine-tunes on 50, 100, 200
and all training structures of this one, and trains from scratch on the same structures for as many steps. Then,
with one number of structures, it fine-tunes with replay, and measures the errors of the old branches with and without
replay.

    python benchmarks/accuracy/finetune_curves.py --data five --out finetune-curves
    python benchmarks/accuracy/finetune_curves.py --data five --out finetune-curves --only qm7x        # one dataset
    python benchmarks/accuracy/finetune_curves.py --data five --out finetune-curves --only pre-qm7x    # one part

Every part is done once: its result is kept in OUT/parts, and the program can be stopped and restarted at any time.
Writes OUT/curves.json, curves.md, curves.svg and curves.png from the finished parts. All errors are those on the whole
test splits, energy in eV/atom after references, forces in eV/Å per component, with the best weights on the whole
validation split of the dataset in both cases. Subsets are random and nested, and begin with enough structures to
contain every element of the dataset (19 of `mad`, 1 to 3 of the others).

Cost on one core, extrapolated from parts of 20 steps on a busy machine, for the recommended default
setting: 25 minutes for the five pre-trainings of 8 passes, 15 for the 40 runs of 300 steps, 5 for replay, 5 for errors
and stores; about 50 minutes in total. With `--layers 4 --width 128`, the model of the accuracy benchmark, two to three
times as long.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.io import iread

from ramify.batches.loader import SplitReader
from ramify.batches.open import open_stores
from ramify.files import write_json, write_whole
from ramify.finetune.errors import FinetuneRow, OldData, old_data
from ramify.finetune.resolve import FinetuneRequest
from ramify.finetune.run import finetune
from ramify.inference.model import load
from ramify.parallel.world import World
from ramify.prepare.prepare import prepare_dataset
from ramify.recipe import Recipe, load_recipe, parse_recipe
from ramify.report.svg import INK, MUTED, Canvas, colors, log_axis
from ramify.train.reporting import Callbacks
from ramify.train.start import start_run

START = {"wb97x": "qm7x", "qm7x": "wb97x", "orca_pbe": "wb97x", "mlearn": "mad", "mad": "mlearn"}
"""The branch that the branch of each dataset starts from: the one with the most similar structures."""
ALL = "all"
PASSES = 4
"""Number of evaluations during a fine-tuning or a training from scratch."""


class Benchmark:
    """The parts of the benchmark by name; each depends on the options and on other parts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out)
        (self.out / "parts").mkdir(parents=True, exist_ok=True)
        self.base = load_recipe("five", [f"train.threads={options.threads}"]).model_dump(mode="json")
        self.base["model"]["encoder"] |= {"layers": options.layers, "width": options.width}
        for head in ("energy_head", "force_head"):
            self.base["model"][head] |= {"layers": 2, "width": options.width}

    def parts(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """All parts in execution order."""
        found: dict[str, Callable[[], dict[str, Any]]] = {}
        for target in self.options.datasets:
            found[f"pre-{target}"] = lambda target=target: self.pretrain(target)
            for size in self.options.sizes:
                found[f"{target}-{size}-tuned"] = lambda t=target, n=size: self.tuned(t, n, "new-branch")
                found[f"{target}-{size}-scratch"] = lambda t=target, n=size: self.scratch(t, n)
            found[f"{target}-{self.options.replayed}-replay"] = lambda t=target: self.tuned(
                t, self.options.replayed, "replay"
            )
        return found

    def do(self, name: str) -> dict[str, Any]:
        """The result of a part, computed if it is not available yet."""
        path = self.out / "parts" / f"{name}.json"
        if not path.is_file():
            shutil.rmtree(self.out / "runs" / name, ignore_errors=True)  # left by an interrupted program
            begun = time.process_time()
            result = self.parts()[name]()
            seconds = round(time.process_time() - begun, 1)
            write_json(path, result | {"name": name, "core_seconds": seconds})
            print(f"{name}: {seconds:.0f} s", flush=True)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def pretrain(self, target: str) -> dict[str, Any]:
        """Pre-trains on the four other datasets."""
        others = [name for name in self.base["datasets"] if name != target]
        recipe = self.recipe(dict.fromkeys(others, ALL), epochs=self.options.passes, evaluate_every=1.0)
        trainer = start_run(recipe, self.out / "runs" / f"pre-{target}", Callbacks())
        trainer.fit()
        return {"target": target, "kind": "pre", "steps": trainer.progress.step, "datasets": others}

    def tuned(self, target: str, size: str, mode: str) -> dict[str, Any]:
        """Fine-tunes on `size` structures, with or without the old datasets."""
        self.do(f"pre-{target}")
        pre, path = self.out / "runs" / f"pre-{target}", self.out / "runs" / self.run_name(target, size, mode)
        datasets = {target: size}
        if mode == "replay":
            datasets |= {name: ALL for name in self.base["datasets"] if name != target}
        recipe = self.recipe(datasets, lr=self.options.lr, new=target if mode == "replay" else None)
        steps = self.options.replay_steps if mode == "replay" else self.options.steps
        wish = FinetuneRequest(mode, str(pre), START[target], steps)
        found = finetune(wish, recipe, path, Callbacks())
        found.fit()
        result = {"target": target, "size": size, "kind": "replay" if mode == "replay" else "tuned"}
        result |= {
            "structures": found.trainer.stream.sizes[target],
            "steps": found.trainer.total_steps,
            "best_step": found.trainer.progress.best_step,
        }
        result["test"] = self.test_error(path, target).to_dict()
        if size == self.options.replayed:
            alone = self.recipe({target: size})
            before, after = load(pre), load(path)
            old = old_data(before.saved, alone, "test")
            result["old_before"] = [row.to_dict() for row in old.rows(before, World())]
            result["old_after"] = [row.to_dict() for row in old.rows(after, World())]
        return result

    def scratch(self, target: str, size: str) -> dict[str, Any]:
        """Trains from scratch on the same structures for the same number of steps."""
        path = self.out / "runs" / f"{target}-{size}-scratch"
        recipe = self.recipe({target: size}, lr=self.options.scratch_lr, max_steps=self.options.steps)
        trainer = start_run(recipe, path, Callbacks())
        trainer.fit()
        result = {"target": target, "size": size, "kind": "scratch", "structures": trainer.stream.sizes[target]}
        result |= {"steps": trainer.total_steps, "best_step": trainer.progress.best_step}
        return result | {"test": self.test_error(path, target).to_dict()}

    @staticmethod
    def run_name(target: str, size: str, mode: str) -> str:
        """Name of the run of a part."""
        return f"{target}-{size}-{'replay' if mode == 'replay' else 'tuned'}"

    def test_error(self, run: Path, name: str) -> FinetuneRow:
        """Error of the best weights of a run on the whole test split of a dataset."""
        recipe = load_recipe(run / "recipe.yaml")
        encoder = recipe.model.encoder
        store, branch = open_stores(recipe)[name], recipe.branch_of_datasets()[name]
        cut = {"cutoff": encoder.cutoff, "max_neighbors": encoder.max_neighbors}
        reader = SplitReader(name, store, "test", branch, **cut, edge_cache=0.0)
        return OldData({(branch, name): reader}, ()).rows(load(run), World())[0]

    def recipe(self, datasets: Mapping[str, str], *, new: str | None = None, lr: float = 0.0, **train: Any) -> Recipe:
        """A recipe for subsets of datasets, which are prepared if necessary.

        Args:
            datasets: size of each dataset.
            new: the dataset that forms half of every batch, which is then twice as large.
            lr: learning rate; that of `five` if 0.
            train: keys of `train`.
        """
        o = self.options
        stores = self.out / "stores" / ("-".join(f"{n}-{size}" for n, size in datasets.items() if size != ALL) or ALL)
        sizes = {name: self.prepared(name, size, stores) for name, size in datasets.items()}
        batch = o.batch if new is None else 2 * o.batch
        few = min(sizes.values()) if new is None else sizes[new]
        steps = o.steps if new is None else o.replay_steps
        whole = {"batch": batch, "evaluate_every": max(steps / PASSES * batch / sum(sizes.values()), 1e-3)} | train
        content = {key: value for key, value in self.base.items() if key not in ("train", "datasets", "branches")}
        content |= {
            "stores": str(stores),
            "datasets": {name: self.entry(name, size) for name, size in datasets.items()},
            "train": {"threads": o.threads, "checkpoint_every": 1e6, "seed": o.seed, "log_every": 1000} | whole,
            "schedule": self.base["schedule"] | {"warmup_steps": max(1, steps // 10)},
        }
        content["objective"] = self.base["objective"] | {"weights": {}}
        content["optimizer"] = self.base["optimizer"] | {"ema": 0.99} | ({"lr": lr} if lr else {})
        if new is not None:
            content["finetune"] = {"old_rate": o.replay_old_rate}
            others = sum(sizes.values()) - few
            content["train"]["sampling"] = {new: others / few}
        return parse_recipe(content, "benchmark")

    def entry(self, name: str, size: str) -> dict[str, Any]:
        """The recipe entry of a dataset with `size` training structures."""
        data = Path(self.options.data) / name
        splits = {split: str(data / f"{split}.extxyz") for split in ("train", "val", "test")}
        if size != ALL:
            splits["train"] = str(self.out / "subsets" / f"{name}-{size}.extxyz")
        return {"format": "extxyz", "path": splits, "group_key": "group"}

    def prepared(self, name: str, size: str, stores: Path) -> int:
        """Prepares a store below `stores`, or links to that of the whole dataset; returns its number of training
        structures."""
        entry = parse_recipe({"datasets": {name: self.entry(name, size)}}, "benchmark").datasets[name]
        if size != ALL:
            self.cut(name, int(size))
            return prepare_dataset(name, entry, stores, base=Path.cwd()).splits["train"].structures
        whole = self.out / "stores" / ALL
        if stores != whole and not (stores / name).is_symlink():
            stores.mkdir(parents=True, exist_ok=True)
            (stores / name).symlink_to(Path("..") / ALL / name)
        return prepare_dataset(name, entry, whole, base=Path.cwd()).splits["train"].structures

    def cut(self, name: str, size: int) -> None:
        """Writes the first `size` training structures in the order of `drawn`."""
        target = self.out / "subsets" / f"{name}-{size}.extxyz"
        if target.is_file():
            return
        source = Path(self.options.data) / name / "train.extxyz"
        frames = list(split_frames(source.read_text()))
        chosen = drawn([set(atoms.get_chemical_symbols()) for atoms in iread(source)], self.options.seed)[:size]
        target.parent.mkdir(exist_ok=True)
        write_whole(target, "".join(frames[k] for k in chosen))


def split_frames(text: str) -> Iterator[str]:
    """The frames of an extended XYZ file as text."""
    lines = text.splitlines(keepends=True)
    at = 0
    while at < len(lines):
        end = at + 2 + int(lines[at])
        yield "".join(lines[at:end])
        at = end


def drawn(elements: Sequence[set[str]], seed: int) -> list[int]:
    """All structures in random order, after enough structures to contain every element: for the rarest missing element,
    the structure with the most missing elements, repeatedly."""
    count: dict[str, int] = {}
    for symbols in elements:
        for symbol in sorted(symbols):
            count[symbol] = count.get(symbol, 0) + 1
    order = list(range(len(elements)))
    random.Random(seed).shuffle(order)
    missing, first = set(count), []
    while missing:
        rarest = min(sorted(missing), key=lambda symbol: count[symbol])
        holding = [k for k in order if rarest in elements[k]]
        first.append(max(holding, key=lambda k: len(elements[k] & missing)))
        missing -= elements[first[-1]]
    return first + [k for k in order if k not in set(first)]


def results(benchmark: Benchmark) -> list[dict[str, Any]]:
    """The results of all finished parts."""
    paths = [benchmark.out / "parts" / f"{name}.json" for name in benchmark.parts()]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


def ratio(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Geometric mean over energy and forces of the ratios of the errors of `one` to those of `other`."""
    test, against = one["test"], other["test"]
    return math.sqrt(test["energy_mae"] / against["energy_mae"] * test["forces_mae"] / against["forces_mae"])


def lost(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Increase of the errors of each old branch."""
    after = {row["branch"]: row for row in part["old_after"]}
    return [
        {
            "branch": row["branch"],
            "energy": after[row["branch"]]["energy_mae"] / row["energy_mae"] - 1,
            "forces": after[row["branch"]]["forces_mae"] / row["forces_mae"] - 1,
        }
        for row in part["old_before"]
    ]


def markdown(parts: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> str:
    """The tables."""
    found = {(p["target"], p.get("size"), p["kind"]): p for p in parts}
    lines = ["| dataset | structures | energy, tuned | scratch | forces, tuned | scratch | ratio of errors |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for target in options.datasets:
        for size in options.sizes:
            one, other = found.get((target, size, "tuned")), found.get((target, size, "scratch"))
            if one and other:
                cells = [e[k] for k in ("energy_mae", "forces_mae") for e in (one["test"], other["test"])]
                figures = " | ".join(f"{value:.4f}" for value in cells)
                lines.append(f"| {target} | {size} | {figures} | {ratio(one, other):.2f} |")
    pairs = [(t, found.get((t, "100", "tuned")), found.get((t, "200", "scratch"))) for t in options.datasets]
    lines += ["", "Fine-tuned with 100 structures against from scratch with 200:", ""]
    for target, one, other in pairs:
        if one and other:
            lines.append(f"- {target}: errors {ratio(one, other):.2f} times as large")
    lines += ["", f"Old branches after fine-tuning on {options.replayed} structures, change of test errors:", ""]
    lines += ["| new dataset | old branch | energy, plain | replay | forces, plain | replay |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for target in options.datasets:
        plain = found.get((target, options.replayed, "tuned"))
        replay = found.get((target, options.replayed, "replay"))
        if plain and replay and "old_after" in plain:
            for a, b in zip(lost(plain), lost(replay), strict=True):
                cells = [100 * e[k] for k in ("energy", "forces") for e in (a, b)]
                lines.append(f"| {target} | {a['branch']} | " + " | ".join(f"{c:+.0f} %" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def draw(parts: Sequence[Mapping[str, Any]], options: argparse.Namespace, out: Path) -> None:
    """Draws errors against numbers of structures: a column for each dataset, energies above forces."""
    kinds = {"tuned": "fine-tuned", "scratch": "from scratch"}
    color = colors(list(kinds))
    words = []
    with Canvas(190 * len(options.datasets), 380) as canvas:
        panels = canvas.figure.subplots(2, len(options.datasets), squeeze=False)
        for column, target in enumerate(options.datasets):
            for row, (label, unit) in enumerate((("energy_mae", "energy, eV/atom"), ("forces_mae", "forces, eV/Å"))):
                axes = panels[row, column]
                for kind, name in kinds.items():
                    own = [p for p in parts if p["target"] == target and p["kind"] == kind]
                    points = sorted((p["structures"], p["test"][label]) for p in own)
                    counts, errors = [n for n, _ in points], [value for _, value in points]
                    axes.plot(counts, errors, color=color[kind], marker="o", markersize=4, label=name)
                    words += [f"{target} {name} {n}: {value:.4f}" for n, value in points]
                log_axis(axes, "y")
                axes.set_xscale("log")
                axes.set_xticks(counts, [str(n) for n in counts], fontsize=7)
                axes.minorticks_off()
                axes.set_ylabel(unit if column == 0 else "")
                axes.set_xlabel("structures" if row else "")
                axes.set_title("" if row else target, color=INK, fontsize=9.5)
        panels[1, 0].legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="center right")
        canvas.drawing("Test errors against training structures. " + "; ".join(words)).save(out / "curves.svg")
        canvas.figure.savefig(out / "curves.png", dpi=160, facecolor="white")


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", required=True, help="folder with DATASET/{train,val,test}.extxyz")
    parser.add_argument("--out", default="finetune-curves")
    parser.add_argument("--only", default="", help="parts whose names are this or begin with `this-`")
    parser.add_argument("--datasets", nargs="+", default=list(START), choices=list(START))
    parser.add_argument("--sizes", nargs="+", default=["50", "100", "200", ALL])
    parser.add_argument("--replayed", default="200", help="structures in fine-tunings with and without replay")
    parser.add_argument("--passes", type=float, default=8.0, help="passes over four datasets in the pre-training")
    parser.add_argument("--steps", type=int, default=300, help="steps of every fine-tuning and training from scratch")
    parser.add_argument("--replay-steps", type=int, default=1200)
    parser.add_argument("--replay-old-rate", type=float, default=0.25, help="finetune.old_rate of replay")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of fine-tunings")
    parser.add_argument("--scratch-lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Runs the missing parts, and writes tables and figure."""
    options = arguments()
    torch.set_num_threads(options.threads)
    benchmark = Benchmark(options)
    kept = benchmark.out / "setting.json"
    setting = {k: v for k, v in vars(options).items() if k not in ("only", "out", "datasets")}
    if kept.is_file() and json.loads(kept.read_text()) != setting:
        raise SystemExit(f"{kept}: these parts were made with other options; choose another --out")
    write_json(kept, setting)
    for name in benchmark.parts():
        if not options.only or name == options.only or name.startswith(f"{options.only}-"):
            benchmark.do(name)
    parts = results(benchmark)
    write_json(benchmark.out / "curves.json", {"setting": setting, "parts": parts})
    write_whole(benchmark.out / "curves.md", markdown(parts, options))
    draw(parts, options, benchmark.out)
    print((benchmark.out / "curves.md").read_text())


if __name__ == "__main__":
    main()
