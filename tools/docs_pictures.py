"""Takes the pictures of pages in the documentation: comparison.png, differences.png and study.png.

`python tools/docs_pictures.py demo-study` draws the pages of the study of `ramify demo` again, and opens them in
Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from ramify.report.compare.compare import write_comparison
from ramify.study.results.outcome import outcome_of
from ramify.study.results.page import render_page
from ramify.study.table import Study

IMAGES = Path(__file__).parents[1] / "docs/images"


def pages(folder: Path, to: Path) -> dict[str, Path]:
    """Writes the page of a study, and the comparison of two of its runs."""
    study = Study.open(folder)
    outcome = outcome_of(study)
    assert outcome is not None, "no model of the study is done"
    study_page = to / "study.html"
    study_page.write_text(render_page(study, outcome, []), encoding="utf-8")
    runs = [folder / "runs/MTL-All-seed0", folder / "runs/Baseline-All-seed0"]
    return {"study": study_page, "comparison": write_comparison(runs, to / "comparison.html")}


def take(page: Any, files: dict[str, Path]) -> None:
    """Takes all pictures in a window 880 pixels wide."""
    page.goto(f"file://{files['study']}")
    page.locator("#tables").screenshot(path=IMAGES / "study.png")
    page.goto(f"file://{files['comparison']}")
    page.locator("#elements").screenshot(path=IMAGES / "differences.png")
    qm7x = page.locator("#curves .dataset", has=page.get_by_role("heading", name="qm7x"))
    qm7x.screenshot(path=IMAGES / "comparison.png")


def main() -> None:
    """Takes the pictures of the study that is named on the command line."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=0)
        page = browser.new_page(viewport={"width": 880, "height": 900})
        page.set_default_timeout(0)
        take(page, pages(Path(sys.argv[1]).resolve(), Path(folder)))
        browser.close()


if __name__ == "__main__":
    main()
