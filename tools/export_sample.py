"""Writes a sample of the current export format into `tests/inference/exports`, which the tests load permanently.

Run once whenever `VERSION` in `src/ramify/inference/export/exported.py` is raised, from the root of the source
tree; samples of earlier versions are left as they are.

    python -m tools.export_sample
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk, molecule
from tests.small import make_recipe, prepare_stores, train

from ramify.inference.export.exported import VERSION, write_export
from ramify.inference.model import load, read_saved

EXPORTS = Path(__file__).parents[1] / "tests/inference/exports"
STRUCTURES = {"water": molecule("H2O"), "ethanol": molecule("CH3CH2OH"), "silicon": bulk("Si")}
ASKED = {"ani1x": ["water", "ethanol"], "bare": ["water"], "mptrj": ["silicon"], "mixed": ["water", "ethanol"]}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = prepare_stores(folder)
        for kind, branches in (
            ("direct", {"ani1x": ["ani1x"], "mptrj": ["mptrj"], "bare": ["bare"]}),
            ("conservative", {"mptrj": ["mptrj"], "mixed": ["ani1x", "bare"]}),
        ):
            used = {d: entries[d] for group in branches.values() for d in group}
            run = folder / kind
            train(make_recipe(folder, used, branches=branches, model__force_head__kind=kind), run)
            sample = EXPORTS / f"version-{VERSION}-{kind}"
            write_export(read_saved(run), sample)
            (sample / "expected.json").write_text(json.dumps(expected(sample), indent=1) + "\n")


def expected(sample: Path) -> dict[str, dict[str, object]]:
    """Predictions of the sample, by branch and structure."""
    model = load(sample)
    found: dict[str, dict[str, object]] = {}
    for branch, info in model.branches.items():
        dataset = next(iter(info.datasets))
        for name in ASKED[branch]:
            found = model.predict(STRUCTURES[name], branch, dataset=dataset)
            plain = {k: None if v is None else np.asarray(v).tolist() for k, v in prediction_data(found).items()}
            found.setdefault(branch, {})[name] = plain
    return found


def prediction_data(prediction: object) -> dict[str, object]:
    """Energy, forces and stress by name."""
    return {key: getattr(prediction, key) for key in ("energy", "forces", "stress")}


if __name__ == "__main__":
    main()
