"""The page about studies does what it says."""

import json
from pathlib import Path

import pytest

from tests.processes.forked import apart

pytestmark = pytest.mark.timeout(600)


def follow_page(folder: Path) -> None:
    """Does what the page says, in a process whose models are forks of it: their imports would take most of the time."""
    from tests.docs.pages import walk

    steps = walk("docs/study.md", folder)
    (folder / "said").write_text("\n".join(step.said for step in steps))


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    apart(follow_page, tmp_path)
    said = (tmp_path / "said").read_text()
    for fact in ("Table 1.", "Table 2.", "Model-coinage", "Baseline-All", "MTL-All", "refitted", "study: alloys"):
        assert fact in said
    study = tmp_path / "alloys"
    seeds = {
        row["model"]: row["seeds"] for row in json.loads((study / "results.json").read_text())["tables"][0]["rows"]
    }
    assert seeds == {"Model-coinage": [0], "Model-catalysts": [0], "Baseline-All": [0], "MTL-All": [0, 1]}
    page = Path(__file__).parents[2] / "docs/study.md"
    for name in ("study.json", "tables.md", "tables.tex", "results.json", "study.html", "runs", "logs", "recipes"):
        assert (study / name).exists()
        assert f"`{name}" in page.read_text()
