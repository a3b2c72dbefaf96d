"""A synthetic run directory, complete and plausible, with planted errors that the evaluation must report."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "Al": 13, "Si": 14, "S": 16, "Cl": 17, "Ti": 22, "Fe": 26, "Ni": 28,
           "Cu": 29}  # fmt: skip

DATASETS = {
    "ani1x": {"elements": ["H", "C", "N", "O"], "theory": "wB97X/6-31G(d)", "structures": 120},
    "qm7x": {"elements": ["H", "C", "N", "O", "S", "Cl"], "theory": "PBE0+MBD", "structures": 90},
    "transition1x": {"elements": ["H", "C", "N", "O"], "theory": "wB97X/6-31G(d)", "structures": 100},
    "mptrj": {"elements": ["O", "Al", "Si", "Ti", "Fe", "Ni", "Cu"], "theory": "PBE(+U)", "structures": 60},
    "alexandria": {"elements": ["Al", "Si", "Ti", "Fe", "Ni", "Cu"], "theory": "PBE", "structures": 40},
}
"""Energy and force MAE of the own branch, then of the trivial predictor. alexandria's forces are worse than trivial."""
PLANTED = {
    "ani1x": (0.0123, 0.1111, 0.0601, 0.6794),
    "qm7x": (0.0321, 0.2222, 0.1745, 1.2735),
    "transition1x": (0.0213, 0.1777, 0.0942, 0.8395),
    "mptrj": (0.0834, 0.0707, 0.2079, 0.4888),
    "alexandria": (0.0456, 0.0061, 0.4120, 0.0052),
}

MakeRun = Callable[..., Path]


def scaled(rng: np.random.Generator, shape: tuple[int, ...], mae: float) -> np.ndarray:
    """Heavy-tailed numbers whose mean absolute value is `mae` exactly."""
    values = rng.laplace(size=shape) * rng.lognormal(0, 0.5, size=shape)
    return values * (mae / np.abs(values).mean())


def predictions(rng: np.random.Generator, name: str, structures: int) -> dict[str, np.ndarray]:
    """Labels and predictions of one dataset with the planted errors."""
    energy_mae, forces_mae, energy_trivial, forces_trivial = PLANTED[name]
    elements = np.array([NUMBERS[s] for s in DATASETS[name]["elements"]], np.uint8)
    n_atoms = rng.integers(4, 30, structures)
    energy = scaled(rng, (structures,), energy_trivial)
    forces = scaled(rng, (int(n_atoms.sum()), 3), forces_trivial)
    return {
        "energy_true": energy,
        "energy_predicted": energy + scaled(rng, energy.shape, energy_mae),
        "n_atoms": n_atoms,
        "numbers": rng.choice(elements, int(n_atoms.sum())),
        "forces_true": forces.astype(np.float32),
        "forces_predicted": (forces + scaled(rng, forces.shape, forces_mae)).astype(np.float32),
        "names": np.array([f"{name}.h5/group-{i // 7}[{i}]" for i in range(structures)]),
        "energy_trivial": np.zeros(structures),
        **geometry(name, n_atoms),
    }


def geometry(name: str, n_atoms: np.ndarray) -> dict[str, np.ndarray]:
    """Structures on a cubic grid of 1.5 Å with random displacements; materials are periodic."""
    rng, periodic = np.random.default_rng(11), name in ("mptrj", "alexandria")
    grid = 1.5 * np.array([[k % 4, k // 4 % 4, k // 16] for k in range(n_atoms.max())])
    sites = np.concatenate([grid[:n] for n in n_atoms])
    return {
        "positions": (sites + rng.normal(0, 0.1, sites.shape)).astype(np.float32),
        "cell": np.tile(6.0 * periodic * np.eye(3), (len(n_atoms), 1, 1)),
        "pbc": np.full((len(n_atoms), 3), periodic),
        "total_energy": rng.normal(-100, 5, len(n_atoms)),
        "groups": np.array([f"{name} {i // 7}" for i in range(len(n_atoms))]),
    }


def manifest(rng: np.random.Generator, name: str, structures: int) -> dict:
    """The manifest of one dataset."""
    elements = DATASETS[name]["elements"]
    counts = {"train": 8 * structures, "val": structures, "test": structures}
    groups = {split: {"structures": n, "atoms": 17 * n, "groups": max(1, n // 7)} for split, n in counts.items()}
    return {
        "format": "ramify-store",
        "version": 1,
        "dataset": name,
        "theory": DATASETS[name]["theory"],
        "options": {"format": name, "path": f"{name}.h5"},
        "splits": groups,
        "elements": {
            s: {split: int(rng.integers(40, 90) * n / (i + 1) ** 2) for split, n in counts.items()}
            for i, s in enumerate(elements)
        },
        "labels": {"energy": 10 * structures, "forces": 10 * structures, "stress": 0},
        "references": {
            "energies": {s: -13.6 * NUMBERS[s] ** 1.7 for s in elements},
            "structures": 8 * structures,
            "residual_mae": PLANTED[name][2],
            "rank": len(elements),
        },
        "statistics": {
            "energy_std": 0.1,
            "energy_mae": PLANTED[name][2],
            "forces_rms": 1.4 * PLANTED[name][3],
            "forces_mae": PLANTED[name][3],
            "mean_atoms": 17.0,
            "max_force": 30 * PLANTED[name][3],
            "min_distance": 0.71,
        },
        "consistency": {"slope": None, "pairs": 0, "correlation": None}
        if name == "alexandria"
        else {"slope": 0.9812, "pairs": 311, "correlation": 0.9931},
        "dropped": {"force above limit": 3, "duplicate": 12} if name == "qm7x" else {},
        "read": 10 * structures + (15 if name == "qm7x" else 0),
        "moved_to_train": ["C2Fe"] if name == "mptrj" else [],
        "shared_groups": 4 if name == "transition1x" else 0,
        "sources": [{"path": f"{name}.h5", "bytes": 123456, "sha256": "ab" * 32}],
        "columns": {"energy": {"dtype": "float64", "shape": [10 * structures], "sha256": "cd" * 32}},
        "names_sha256": "ef" * 32,
        "versions": {"ramify": "0.1.0", "numpy": "2.4.6", "python": "3.11.7"},
    }


def history(rng: np.random.Generator, names: dict[str, str], evaluations: int) -> list[dict]:
    """Training and validation records whose errors fall from trivial towards the planted ones."""
    lines = []
    for step in range(20, 50 * evaluations + 1, 10):
        done, epoch = step / (50 * evaluations), step / 25
        lines.append(
            {"kind": "train", "step": step, "epoch": epoch, "time": step / 3.0,
             "loss": float(2.0 * np.exp(-3 * done) + 0.1 * rng.random()), "lr": 1e-3 * (1 - done) + 1e-6,
             "grad_norm": float(rng.lognormal(0, 0.4)), "branches": {}}
        )  # fmt: skip
        if step % 50:
            continue
        found = {}
        for name, kind in names.items():
            energy, forces, energy_trivial, forces_trivial = PLANTED[kind]
            fall = np.exp(-4 * done) * float(rng.lognormal(0, 0.05))
            found[name] = {
                "branch": name,
                "energy_mae": energy + (1.5 * energy_trivial - energy) * fall,
                "forces_mae": forces + (1.1 * forces_trivial - forces) * fall,
                "energy_rmse": None,
                "forces_rmse": None,
                "trivial_energy_mae": energy_trivial,
                "trivial_forces_mae": forces_trivial,
            }
        lines.append({"kind": "val", "step": step, "epoch": epoch, "time": step / 3.0, "metric": 1 - done,
                      "best": True, "datasets": found})  # fmt: skip
    return lines


def evaluation(found: dict[str, dict[str, np.ndarray]], branch_of: dict[str, str], step: int) -> dict:
    """`evaluation.json` by plain numpy on the whole split; a foreign branch errs 10 times as much."""
    rows, trivial = [], []
    for name, p in found.items():
        energy, forces = p["energy_predicted"] - p["energy_true"], (p["forces_predicted"] - p["forces_true"])
        for branch in dict.fromkeys(branch_of.values()):
            factor = 1 if branch == branch_of[name] else 10
            rows.append(
                {"branch": branch, "dataset": name, "structures": len(energy), "atoms": len(forces),
                 **_errors(factor * energy, factor * forces)}
            )  # fmt: skip
        trivial.append({"dataset": name, **_errors(p["energy_true"], p["forces_true"])})
    return {
        "split": "test",
        "units": {"energy": "eV/atom after the dataset's reference energies", "forces": "eV/Å per component"},
        "rows": rows,
        "trivial": trivial,
        "branch_of": branch_of,
        "step": step,
        "model": {"parameters": 123456, "encoder": 100000},
    }


def _errors(energy: np.ndarray, forces: np.ndarray) -> dict[str, float | None]:
    def mean(values: np.ndarray) -> float | None:
        values = values[~np.isnan(values)].astype(np.float64)
        return float(values.mean()) if values.size else None

    def root(value: float | None) -> float | None:
        return None if value is None else value**0.5

    return {
        "energy_mae": mean(abs(energy)),
        "forces_mae": mean(abs(forces)),
        "energy_rmse": root(mean(energy.astype(np.float64) ** 2)),
        "forces_rmse": root(mean(forces.astype(np.float64) ** 2)),
    }


def build_run(
    path: Path,
    *,
    only: tuple[str, ...] = tuple(DATASETS),
    rename: dict[str, str] | None = None,
    without_forces: tuple[str, ...] = (),
    scale: int = 1,
    evaluations: int = 12,
) -> Path:
    """Writes a run directory, a branch for each dataset.

    Args:
        path: the directory.
        only: the datasets it has (fewer are drawn faster).
        rename: other names for some datasets.
        without_forces: datasets without force labels.
        scale: how many times as many structures.
        evaluations: number of validations during training.
    """
    rng = np.random.default_rng(7)
    names = {(rename or {}).get(name, name): name for name in only}
    (path / "predictions").mkdir(parents=True)
    found, data = {}, {}
    for name, kind in names.items():
        structures = scale * DATASETS[kind]["structures"]
        p = predictions(rng, kind, structures)
        if name in without_forces:
            p["forces_true"] = np.full_like(p["forces_true"], np.nan)
            p["forces_predicted"] = p["forces_true"]
        np.savez_compressed(path / "predictions" / f"{name}.npz", **p)
        found[name], data[name] = p, manifest(rng, kind, structures)
    recipe = {
        "datasets": {name: {"format": kind, "path": f"{kind}.h5"} for name, kind in names.items()},
        "branches": "per-dataset",
        "model": {"encoder": {"kind": "egnn", "layers": 4, "width": 128, "cutoff": 5.0}},
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    lines = history(rng, names, evaluations)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    step = 50 * evaluations
    (path / "evaluation.json").write_text(json.dumps(evaluation(found, {n: n for n in names}, step)))
    (path / "data.json").write_text(json.dumps(data))
    return path


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """`make_run(path, **options)`: see `build_run`."""
    return build_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests only read."""
    return build_run(tmp_path_factory.mktemp("runs") / "multi")


@pytest.fixture(scope="session")
def planted() -> dict[str, tuple[float, float, float, float]]:
    """By dataset: energy MAE, forces MAE, and the trivial predictor's two."""
    return PLANTED
