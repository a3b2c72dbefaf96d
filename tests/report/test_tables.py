"""Tables 1 and 2, with the numbers of the paper: the same cells must be bold."""

import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from ramify.errors import RamifyError
from ramify.report import tables
from ramify.report.measure import Measure
from ramify.report.tables import MARK, format_error
from tests.planted import PLANTED, build_run

DATASETS = ["ANI1x", "QM7-X", "MPTrj", "Alexandria", "Transition1x"]
# MAE in the paper's Tables 1 and 2; a star marks what is bold there.
PAPER = {
    "energy": """
        Model-ANI1x        0.0005* 0.1252  10.7739  22.7022  0.1056
        Model-QM7-X        0.1480  0.0081* 319.5903 962.2206 0.1230
        Model-MPTrj        0.3323  0.3902  0.0651*  0.3766   0.3690
        Model-Alexandria   0.0721  0.1189  0.4729   0.0057*  0.1249
        Model-Transition1x 0.1721  0.1957  19.4042  24.6109  0.0138*
        Baseline-All       0.0119  0.0655  0.4248   0.0634   0.1030
        MTL-All            0.0007* 0.0096* 0.0627*  0.0179*  0.0115*""",
    "forces": """
        Model-ANI1x        0.0034* 1.1323  67.9839   234.0164  0.1400
        Model-QM7-X        1.2797  0.0582* 1558.8623 7286.7197 0.3192
        Model-MPTrj        0.0508  1.1734  0.1597*   0.0039*   0.1425
        Model-Alexandria   0.0508  1.1734  0.1597*   0.0038*   0.1425
        Model-Transition1x 0.7686  1.1668  98.0733   160.0776  0.0433*
        Baseline-All       0.0508  1.1734  0.1597*   0.0039*   0.1425
        MTL-All            0.0074* 0.0925* 0.1238*   0.0039*   0.0388*""",
}
TRIVIAL = {"energy": 0.1, "forces": 0.15}


def paper_rows(quantity: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in PAPER[quantity].strip().splitlines()}


def write_run(
    path: Path,
    errors: dict[tuple[str, str], tuple[float | None, float | None]],
    *,
    trained: list[str],
    branches: object = "per-dataset",
    trivial: dict[str, tuple[float | None, float | None]] | None = None,
    split: str = "test",
    structures: int = 10,
    **recipe: object,
) -> Path:
    """A run with the given MAEs: {(branch, dataset): (energy, forces)}."""
    path.mkdir(parents=True)
    names = list(dict.fromkeys(dataset for _, dataset in errors))
    owner = {"shared": dict.fromkeys(trained, "shared"), "per-dataset": {d: d for d in trained}}[str(branches)]
    trivial = trivial or dict.fromkeys(names, (TRIVIAL["energy"], TRIVIAL["forces"]))
    rows = [
        {"branch": b, "dataset": d, "energy_mae": e, "forces_mae": f, "energy_rmse": None, "forces_rmse": None,
         "structures": structures, "atoms": 100}
        for (b, d), (e, f) in errors.items()
    ]  # fmt: skip
    baseline = [{"dataset": d, "energy_mae": e, "forces_mae": f} for d, (e, f) in trivial.items()]
    content = {"datasets": {name: {} for name in trained}, "branches": branches, **recipe}
    (path / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (path / "evaluation.json").write_text(
        json.dumps({"split": split, "rows": rows, "trivial": baseline, "branch_of": owner, "step": 5})
    )
    return path


@pytest.fixture
def paper_runs(tmp_path: Path) -> list[Path]:
    energy, forces = paper_rows("energy"), paper_rows("forces")
    runs = []
    for model in energy:
        pairs = [tuple(float(v.rstrip("*")) for v in p) for p in zip(energy[model], forces[model], strict=True)]
        single = model.removeprefix("Model-")
        trained = [single] if single in DATASETS else DATASETS
        branches = "shared" if model == "Baseline-All" else "per-dataset"
        if model == "MTL-All":  # foreign branches are worse, and must not enter
            errors = {(b, d): pairs[i] if b == d else (900.0, 900.0) for b in DATASETS for i, d in enumerate(DATASETS)}
        else:
            branch = "shared" if model == "Baseline-All" else single
            errors = {(branch, d): pairs[i] for i, d in enumerate(DATASETS)}
        runs.append(write_run(tmp_path / model, errors, trained=trained, branches=branches))  # type: ignore[arg-type]
    return runs


def test_the_papers_tables_come_out_with_the_papers_bold_cells(paper_runs: list[Path]) -> None:
    made = tables.build(paper_runs)
    assert made.datasets == DATASETS
    text = made.markdown()
    for number, quantity in enumerate(("energy", "forces"), 1):
        section = text.split(f"Table {number}.")[1]
        for model, cells in paper_rows(quantity).items():
            line = re.search(rf"^\| {re.escape(model)} \| (.*) \|$", section, re.MULTILINE)
            assert line is not None
            shown = line[1].split(" | ")
            for cell, printed in zip(cells, shown, strict=True):
                value = float(cell.rstrip("*"))
                digits = f"{value:.5f}" if value < 0.001 else cell.rstrip("*")  # two significant digits at least
                expected = (f"{MARK} " if value >= TRIVIAL[quantity] else "") + digits
                assert printed == (f"**{expected}**" if cell.endswith("*") else expected), (model, cell)
        assert f"| *Trivial* | {' | '.join([f'{TRIVIAL[quantity]:.4f}'] * 5)} |" in section
    assert f"\n{MARK} no better than trivial." in text


def test_the_mark_is_explained_only_where_it_stands(tmp_path: Path) -> None:
    """Without the mark, its explanation would be misread as a result."""
    run = write_run(tmp_path / "good", {("a", "a"): (TRIVIAL["energy"] / 2, TRIVIAL["forces"] / 2)}, trained=["a"])
    assert MARK not in tables.build([run]).markdown()


def test_json_holds_full_precision_and_who_predicted(paper_runs: list[Path]) -> None:
    made = json.loads(tables.build(paper_runs).to_json())
    energy = made["tables"][0]
    assert (energy["quantity"], energy["unit"], made["split"]) == ("energy", "eV/atom", "test")
    last = energy["rows"][-1]
    assert last["model"] == "MTL-All"
    assert last["trained_on"] == DATASETS
    assert last["cells"]["MPTrj"]["mae"] == 0.0627
    assert last["cells"]["MPTrj"]["branch"] == "MPTrj"
    assert energy["rows"][0]["cells"]["MPTrj"]["branch"] == "ANI1x"
    assert energy["rows"][0]["cells"]["MPTrj"]["no_better_than_trivial"] is True


def test_warnings_are_about_datasets_a_model_was_trained_on(paper_runs: list[Path]) -> None:
    notes = tables.build([p for p in paper_runs if p.name in ("Model-ANI1x", "Model-MPTrj")]).notes
    assert notes == [
        f"{MARK} Model-MPTrj is no better than trivial in the forces of MPTrj: 0.1597 against 0.1500 eV/Å."
    ]


def test_planted_errors_of_a_whole_run(run: Path, planted: dict[str, tuple[float, ...]]) -> None:
    made = tables.build([run])
    for i, table in enumerate(made.tables):
        for dataset, numbers in planted.items():
            assert table.rows[0].cells[dataset].mae == pytest.approx(numbers[i], rel=1e-6)
            assert table.trivial[dataset] == pytest.approx(numbers[i + 2], rel=1e-6)
    assert "| MTL-All | 0.0123 | 0.0321 | 0.0213 | 0.0834 | 0.0456 |" in made.markdown()
    assert made.notes == [
        f"{MARK} MTL-All is no better than trivial in the forces of alexandria: 0.0061 against 0.0052 eV/Å "
        "(forces there are below 0.01 eV/Å to begin with)."
    ]


def test_what_is_missing_says_why(tmp_path: Path) -> None:
    trivial = {"a": (0.1, 0.2), "b": (0.1, None)}
    one = write_run(
        tmp_path / "one", {("a", "a"): (0.05, None), ("a", "b"): (0.3, None)}, trained=["a"], trivial=trivial
    )
    two = write_run(tmp_path / "two", {("c", "c"): (0.01, 0.02)}, trained=["c"])
    energy, forces = tables.build([one, two]).tables
    assert [[r.cells[d].text() for d in "abc"] for r in energy.rows] == [
        ["0.0500", f"{MARK} 0.3000", "—"],
        ["—", "—", "0.0100"],
    ]
    assert [forces.rows[0].cells[d].text() for d in "abc"] == ["no head", "no label", "—"]
    assert forces.trivial == {"a": 0.2, "b": None, "c": 0.15}


def test_two_models_have_one_best_and_one_has_none(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, {("a", "a"): (mae, mae)}, trained=["a"], name=name)
        for name, mae in (("x", 0.03), ("y", 0.02), ("z", math.nan))
    ]
    both = tables.build(runs[:2])
    assert [row.cells["a"].best for row in both.tables[0].rows] == [False, True]
    assert "better of the two" in both.markdown()
    assert [row.cells["a"].best for row in tables.build(runs[:1]).tables[0].rows] == [False]
    three = tables.build(runs)
    assert [row.cells["a"].best for row in three.tables[0].rows] == [True, True, False]
    assert three.tables[0].rows[2].cells["a"].text() == f"{MARK} not finite"
    assert "NaN" not in three.to_json()
    assert any("z is no better than trivial in the energy of a: not finite against 0.1000" in n for n in three.notes)


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / s / "r", {("a", "a"): (0.1, 0.1)}, trained=["a"]) for s in ("seed0", "seed1")]
    runs.append(write_run(tmp_path / "other", {("a", "a"): (0.1, 0.1)}, trained=["a"]))
    names = [row.model for row in tables.build(runs).tables[0].rows]
    assert names == [f"Model-a ({runs[0]})", f"Model-a ({runs[1]})", "Model-a (other)"]


def test_runs_that_do_not_compare(tmp_path: Path) -> None:
    first = write_run(tmp_path / "1", {("a", "a"): (0.1, 0.1)}, trained=["a"])
    val = write_run(tmp_path / "2", {("a", "a"): (0.1, 0.1)}, trained=["a"], split="val")
    with pytest.raises(RamifyError, match="different splits"):
        tables.build([first, val])
    other = write_run(
        tmp_path / "3", {("a", "a"): (0.1, 0.1)}, trained=["a"], trivial={"a": (0.11, 0.15)}, structures=12
    )
    notes = tables.build([first, other]).notes
    assert any(note.startswith("a: runs disagree on the trivial predictor of energy (0.1000 in") for note in notes)
    assert any("different numbers of structures (10, 12)" in note for note in notes)
    with pytest.raises(RamifyError, match="no run"):
        tables.build([])


def test_terminal_output(paper_runs: list[Path]) -> None:
    out = io.StringIO()
    tables.build(paper_runs).render(Console(file=out, width=120))
    lines = out.getvalue().splitlines()
    mtl = next(line for line in lines if "MTL-All" in line)
    assert mtl.split() == ["MTL-All", "0.00070", "0.0096", "0.0627", "0.0179", "0.0115"]
    first = next(line for line in lines if "Model-ANI1x" in line)
    assert first.index("0.1252") == mtl.index("0.0096"), "digits stand below digits"
    assert sum(line.strip().startswith("Trivial") for line in lines) == 2
    narrow = io.StringIO()
    tables.build(paper_runs).render(Console(file=narrow, width=60))
    lines = narrow.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" not in narrow.getvalue(), "numbers are never cut"
    assert sum("319.5903" in line for line in lines) == sum("7286.7197" in line for line in lines) == 1


def test_write_leaves_both_files_and_nothing_else(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    before = {p.name for p in path.iterdir()}
    made = tables.write(path)
    assert {p.name for p in path.iterdir()} - before == {"tables.md", "tables.json"}
    assert (path / "tables.md").read_text() == made.markdown()
    assert json.loads((path / "tables.json").read_text())["datasets"] == made.datasets


def test_a_pipe_in_a_name_does_not_break_the_table(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", {("a", "a"): (0.1, 0.1)}, trained=["a"], name="x|y")
    assert "| x\\|y | " in tables.build([path]).markdown()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0627, "0.0627"), (7286.71968, "7286.7197"), (0.0, "0.0000"), (0.00053, "0.00053"), (0.0051, "0.0051"),
     (0.000004, "4.0e-06"), (0.0123456, "0.0123"), (math.inf, "not finite")],
)  # fmt: skip
def test_format_error(value: float, text: str) -> None:
    assert format_error(value) == text


def test_total_energies_are_those_of_whole_structures(tmp_path: Path) -> None:
    """From the saved predictions, in meV; by plain numpy."""
    run = build_run(tmp_path / "run")
    built = tables.build([run], Measure(rmse=True, total=True))
    assert [table.unit for table in built.tables[:2]] == ["meV", "meV/Å"]
    for name in PLANTED:
        with np.load(run / "predictions" / f"{name}.npz") as file:
            error = 1000 * (file["energy_predicted"] - file["energy_true"]) * file["n_atoms"]
            forces = 1000 * (file["forces_predicted"].astype(float) - file["forces_true"])
            trivial = 1000 * file["energy_true"] * file["n_atoms"]
        energy_cell, forces_cell = (table.rows[0].cells[name] for table in built.tables[:2])
        assert energy_cell.error == pytest.approx(np.sqrt((error**2).mean()))
        assert energy_cell.mae == pytest.approx(np.abs(error).mean())
        assert forces_cell.error == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-5)
        assert built.tables[0].trivial[name] == pytest.approx(np.sqrt((trivial**2).mean()))
    assert "RMSE of the total energy on the test split, meV" in built.markdown()
    plain = tables.build([run])
    assert "MAE" in plain.tables[0].title
    assert plain.tables[0].rows[0].cells["ani1x"].error == plain.tables[0].rows[0].cells["ani1x"].mae


def test_total_energies_need_predictions(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    (run / "predictions" / "qm7x.npz").unlink()
    with pytest.raises(RamifyError, match="no saved predictions of qm7x"):
        tables.build([run], Measure(total=True))
