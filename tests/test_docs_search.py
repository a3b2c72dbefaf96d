"""The page about searches does what it says, with fewer trials."""

import json
import multiprocessing
import os
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ramify.recipe import load_recipe
from tests.worlds import PRELOADED

pytestmark = pytest.mark.timeout(600)

FEWER = {
    "--trials 30 --out search": "--trials 3 --out search",
    "--trials 60": "--trials 4",
    "--trials 30": "--trials 2",
}
"""Numbers of trials on the page, and here."""


def follow_page(folder: Path) -> None:
    """Does what the page says, in a process whose trainings are forks of it, but for the first command, whose trainings
    are started as a user's are."""
    from ramify.run.launcher import Launcher
    from tests import pages
    from tests.search import forked

    started, first = Launcher.start, []

    def start(launcher: Launcher, words: list[str], log: Path, *, slot: int, name: str) -> object:
        if not first:
            first.append(name)
            return started(launcher, words, log, slot=slot, name=name)
        return forked.start(words, log, slot, name)

    Launcher.start = start  # type: ignore[method-assign, assignment]
    run = pages.shell

    def shell(line: str) -> str:
        for page, here in FEWER.items():
            line = line.replace(page, here)
        return run(line)

    pages.shell = shell
    steps = pages.walk("docs/search.md", folder)
    (folder / "said").write_text("\n".join(step.said for step in steps))


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=follow_page, args=(tmp_path,))
    process.start()
    process.join(400)
    assert process.exitcode == 0
    said = (tmp_path / "said").read_text()
    for fact in ("trial 0: rung 1 of 3", "promoted to rung 2 of 3", "rung 3 of 3", "rungs saved", "search/best.yaml"):
        assert fact in said
    search, page = tmp_path / "search", (Path(__file__).parents[1] / "docs/search.md").read_text()
    assert len(list((search / "trials").iterdir())) == 4
    for name in ("best.yaml", "search.html", "tensorboard", "trials", "recipes", "logs", "search.json", "journal.log"):
        assert (search / name).exists()
        assert f"`{name}" in page
    assert load_recipe(search / "best.yaml").train.stop_after is None
    assert load_recipe(tmp_path / "best/recipe.yaml").train.seed == 1
    assert (tmp_path / "trials.db").exists()
    assert json.loads((tmp_path / "front/search.json").read_text())["objectives"] == ["metric", "memory"]
    html = (search / "search.html").read_text()
    assert html.count("<svg") >= 4
    assert "http" not in re.sub(r"https?://(www\.)?w3\.org\S*", "", html)
    events = EventAccumulator(str(search / "tensorboard/0"))
    events.Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert len(events.Scalars("metric")) >= 1
