"""Tables on the terminal: one line per dataset or evaluation, within 80 columns."""

import io
import json
from pathlib import Path

from rich.console import Console

from ramify.cli.progress import EvaluationLines
from ramify.cli.tables import own_errors_table, print_look
from ramify.evaluate.results import Evaluation
from ramify.minicorpora import FILES
from ramify.sources.look import look
from tests.planted import PLANTED, build_run


def entry(epoch: float, names: list[str], best: bool) -> dict[str, object]:
    errors = {"energy_mae": 0.5, "trivial_energy_mae": 1.0, "forces_mae": 0.9, "trivial_forces_mae": 0.8}
    return {"epoch": epoch, "metric": 0.8, "best": best, "datasets": dict.fromkeys(names, errors)}


def test_evaluations_are_one_line_each_below_one_heading() -> None:
    lines = EvaluationLines()
    first = lines.text(entry(1.0, list(PLANTED), True), 80).splitlines()
    second = lines.text(entry(2.0, list(PLANTED), False), 80).splitlines()
    assert len(first) == 3
    assert len(second) == 1
    assert first[1].split() == ["epoch", "metric", *PLANTED]
    assert first[2].split() == ["1.0", "0.800*", *["50/112"] * 5]
    assert len(first[1]) == len(first[2]) == len(second[0]) <= 80


def test_many_datasets_wrap_without_a_heading() -> None:
    text = EvaluationLines().text(entry(1.0, [f"dataset-{k}" for k in range(20)], True), 80)
    assert "E/F in % of trivial" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_errors_of_a_run_take_one_line_per_dataset(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    evaluation = Evaluation.model_validate(json.loads((run / "evaluation.json").read_text()))
    console = Console(file=io.StringIO(), width=80)
    console.print(own_errors_table(evaluation))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    rows = {line.split()[0]: line.split() for line in lines[3:] if line.split()[0] in PLANTED}
    assert list(rows) == list(PLANTED)
    for name, (energy, forces, *_) in PLANTED.items():
        assert float(rows[name][1]) == round(energy, 4)
        assert f"{forces:.4f}" in rows[name]
    assert [name for name, cells in rows.items() if "✗" in cells] == ["alexandria"]
    assert any("no better than trivial" in line for line in lines)


def test_facts_of_a_file_are_wrapped_on_a_terminal_alone() -> None:
    found = look(FILES["qm7x_mini"]).as_data() | {"doubts": ["word " * 29 + "end"]}
    for terminal in (True, False):
        out = io.StringIO()
        print_look(Console(width=60, force_terminal=terminal, color_system=None, file=out), found)
        checks = [line for line in out.getvalue().splitlines() if "word" in line]
        assert len(checks) == (4 if terminal else 1)
        assert checks[0].startswith("check       word")
        if terminal:
            assert max(map(len, checks)) <= 60
            assert all(line.startswith(12 * " " + "word") for line in checks[1:])
