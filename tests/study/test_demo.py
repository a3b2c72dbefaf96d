"""The demo: a study in small with a short output."""

import contextlib
import os
import re
from pathlib import Path

import pytest

from ramify import cli
from tests.corpora import HELD
from tests.processes.forked import apart

SMALL = (
    "train.max_steps=8",
    "schedule.warmup_steps=1",
    "train.evaluate_every=1",
    "model.encoder={kind: egnn, layers: 1, width: 8, cutoff: 4.0, max_neighbors: 8}",
)


def demo(folder: Path) -> None:
    """Runs the demo twice in a process whose models are forks of it."""
    import sys

    os.environ["COLUMNS"] = "120"
    os.chdir(folder)
    for said in ("first", "second"):
        sys.argv = ["ramify", "demo", *SMALL]
        with Path(said).open("w") as output, contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            cli.main()


@pytest.mark.slow
def test_the_demo_is_a_study_with_a_short_output(tmp_path: Path) -> None:
    apart(demo, tmp_path)
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    lines = [line for line in first.splitlines() if line.strip()]
    assert [line.split(":")[0] for line in lines[:5]] == ["ani1x", "qm7x", "transition1x", "mptrj", "alexandria"]
    sizes = r"ani1x: (\d+) / (\d+) / (\d+) structures \(train / val / test\), 4 elements, wB97X/6-31G\(d\), PySCF"
    assert (found := re.fullmatch(sizes, lines[0]))
    assert sum(map(int, found.groups())) == HELD["ani1x_mini"].structures
    assert lines[-1] == "study: demo-study/study.html"
    assert sum(line.startswith("Table") for line in lines) == 2
    assert first.count("MTL-All ") >= 3  # a row in both tables, and the conclusion
    states = [line for line in lines if line.endswith((": training", ": evaluating")) or ": done" in line]
    assert len(lines) - len(states) < 5 + 2 * 13 + 4
    shown = [line for line in lines if line.startswith(("Model-", "Baseline-All", "MTL-All "))]
    assert set(second.splitlines()) >= {line for line in shown if line not in states}  # nothing is trained again
    assert "training" not in second
    assert {p.name for p in tmp_path.iterdir()} == {"demo-study", "demo-study-stores", "first", "second"}
