"""The page about searches does what it says, with fewer trials."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ramify.recipe import load_recipe
from tests.processes.forked import apart

pytestmark = pytest.mark.timeout(600)

FEWER = {
    "--trials 30 --out search": "--trials 3 --out search",
    "--trials 60": "--trials 4",
    "--trials 30": "--trials 2",
}
"""Numbers of trials on the page, and here."""


def follow_page(folder: Path) -> None:
    """Does what the page says, in a process whose trainings are forks of it."""
    from tests.docs import pages

    run = pages.shell

    def shell(line: str) -> str:
        for page, here in FEWER.items():
            line = line.replace(page, here)
        return run(line)

    pages.shell = shell
    steps = pages.walk("docs/search.md", folder)
    (folder / "said").write_text("\n".join(step.said for step in steps))


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    apart(follow_page, tmp_path)
    said = (tmp_path / "said").read_text()
    for fact in ("trial 0: rung 1 of 3", "promoted to rung 2 of 3", "rung 3 of 3", "rungs saved", "search/best.yaml"):
        assert fact in said
    search, page = tmp_path / "search", (Path(__file__).parents[2] / "docs/search.md").read_text()
    assert len(list((search / "trials").iterdir())) == 4
    for name in ("best.yaml", "search.html", "tensorboard", "trials", "recipes", "logs", "search.json", "journal.log"):
        assert (search / name).exists()
        assert f"`{name}" in page
    assert load_recipe(search / "best.yaml").train.stop_after is None
    assert load_recipe(tmp_path / "best/recipe.yaml").train.seed == 1
    assert (tmp_path / "trials.db").exists()
    assert json.loads((tmp_path / "front/search.json").read_text())["objectives"] == ["geometric", "memory"]
    html = (search / "search.html").read_text()
    assert html.count("<svg") >= 4
    assert "http" not in re.sub(r"https?://(www\.)?w3\.org\S*", "", html)
    events = EventAccumulator(str(search / "tensorboard/0"))
    events.Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert len(events.Scalars("metric")) >= 1
