"""The report in a browser: its figures answer, structures are drawn in 3-D, and nothing is loaded from elsewhere."""

import io
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from ramify.evaluate.results import Results
from ramify.report.explore.worst import largest
from ramify.report.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL by the processor: the machine of the tests may have no GPU."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if subprocess.run([str(CHROMIUM), "--version"], capture_output=True, check=False).returncode:
        pytest.skip("chromium is installed, but not completely")
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=0)
        yield found
        found.close()


@pytest.fixture(scope="module")
def small(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_run(tmp_path_factory.mktemp("browser") / "r", only=("qm7x", "mptrj"))
    write_report(path)
    return path


@pytest.fixture
def page(browser: Any, small: Path) -> Iterator[Any]:
    """The report in a window of 1200 x 900, once its script has started; its requests and messages are gathered."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    context.set_default_timeout(0)
    page = context.new_page()
    page.requests, page.messages = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.goto(f"file://{small}/report.html")
    page.wait_for_selector("html.answering")
    yield page
    assert page.messages == []
    assert page.requests[0] == f"file://{small}/report.html"
    assert all(url.startswith(("data:", "blob:")) for url in page.requests[1:])
    context.close()


def worst_energy(run: Path, dataset: str) -> tuple[Any, int]:
    found = Results.open(run).predictions(dataset)
    assert found is not None
    return found, largest(found, "energy")[0][0]


def on_screen(page: Any, dataset: str, label: str, x: float, y: float) -> tuple[float, float]:
    """Window coordinates of a point of a parity plot, from the attributes of the figure."""
    svg = page.locator(f'svg[data-dataset="{dataset}"][data-label="{label}"]')
    svg.scroll_into_view_if_needed()
    box, (_, _, width, _) = svg.bounding_box(), map(float, svg.get_attribute("viewBox").split())
    left, top, right, bottom = map(float, svg.get_attribute("data-frame").split())
    low, high = map(float, svg.get_attribute("data-limits").split())
    scale = box["width"] / width
    across, up = (x - low) / (high - low), (y - low) / (high - low)
    return box["x"] + scale * (left + across * (right - left)), box["y"] + scale * (bottom - up * (bottom - top))


def colors(element: Any) -> int:
    """Number of different colours of an element on the screen."""
    image = imread(io.BytesIO(element.screenshot()))[..., :3]
    return len(np.unique(image.reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_a_point_names_its_structure_and_a_click_shows_it(page: Any, small: Path) -> None:
    found, worst = worst_energy(small, "mptrj")
    true, predicted = found.true["energy"][worst], found.predicted["energy"][worst]
    at = on_screen(page, "mptrj", "energy", true, predicted)
    page.mouse.move(*at)
    bubble = page.locator(".bubble")
    text = bubble.inner_text().replace("−", "-")
    assert found.names[worst] in text
    assert found.geometry.groups[worst] in text
    shown = [float(number) for number in re.findall(r"(?:label|prediction|error) (\S+)", text)]
    assert shown == pytest.approx([true, predicted, predicted - true], rel=1e-3)
    page.mouse.click(*at)
    page.wait_for_selector("dialog[data-atoms]")
    dialog = page.locator("dialog")
    assert dialog.get_attribute("data-atoms") == str(found.n_atoms[worst])
    assert page.locator("dialog h2").inner_text() == found.names[worst]
    stage = page.locator(".stage")
    with_arrows = stage.screenshot()
    assert colors(stage) > 50, "atoms are drawn with shades"
    page.get_by_label("force, label").uncheck()
    assert stage.screenshot() != with_arrows, "the arrows of the labels disappear"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


@pytest.mark.slow
def test_the_keyboard_goes_through_the_points_by_error(page: Any, small: Path) -> None:
    found, worst = worst_energy(small, "qm7x")
    page.locator('svg[data-dataset="qm7x"][data-label="energy"]').focus()
    page.keyboard.press("ArrowRight")
    assert found.names[worst] in page.locator(".bubble").inner_text()
    assert found.names[worst] in page.locator(".spoken[aria-live]").inner_text()
    page.keyboard.press("ArrowRight")
    second = largest(found, "energy")[1][0]
    assert found.names[second] in page.locator(".bubble").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[data-atoms]")
    assert page.locator("dialog h2").inner_text() == found.names[second]


def test_the_largest_errors_open_and_download(page: Any, small: Path, tmp_path: Path) -> None:
    found, worst = worst_energy(small, "qm7x")
    details = page.locator(".dataset details").first
    details.locator("summary").click()
    with page.expect_download() as saved:
        details.locator("a.download").click()
    assert saved.value.suggested_filename == "qm7x-largest-errors.extxyz"
    details.locator("button.open").first.click()
    page.wait_for_selector("dialog[data-atoms]")
    assert page.locator("dialog h2").inner_text() == found.names[worst]


BROKEN = """() => {
  const found = [], walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    if (node.parentElement.closest("svg, pre, style, script, .hash")) continue;
    for (const word of node.data.matchAll(/[\\p{L}\\d.]+/gu)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1) found.push(word[0]);
    }
  }
  return found;
}"""
"""Words of the page that are broken over two lines."""
SMALL = """() => [...document.querySelectorAll("figure svg text")].map((text) => {
  const at = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(at.a, at.b);
})"""
"""Sizes of the texts of all figures on the screen, CSS pixels."""
UNNAMED = """() => [...document.querySelectorAll("main svg[role], main button, main a, main [role=region]")].filter(
  (e) => !(e.getAttribute("aria-label") || e.textContent.trim())).map((e) => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("width", [360, 700, 1200])
def test_no_word_is_broken_and_every_label_is_legible_on_any_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself does not scroll sideways"
    assert page.evaluate(BROKEN) == []
    assert min(page.evaluate(SMALL)) > 8.95
    assert page.evaluate(UNNAMED) == []
    page.add_style_tag(content="h1 { width: 2ch; overflow-wrap: anywhere; }")
    assert page.evaluate(BROKEN) != [], "a broken word is noticed"


def test_the_largest_errors_are_printed_and_labels_are_legible_on_a4(page: Any) -> None:
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # 186 mm between the margins
    assert min(page.evaluate(SMALL)) > 8.95
    assert page.locator(".worst svg").first.is_visible()
    assert not page.locator("a.download").first.is_visible()


def test_the_page_is_complete_without_scripts(browser: Any, small: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(0)
    page = context.new_page()
    page.goto(f"file://{small}/report.html")
    assert page.locator("figure > svg[data-frame]").count() == 4
    assert page.locator("figure > svg[data-frame]").first.is_visible()
    assert not page.get_by_text("Point at a point").is_visible()
    page.locator(".dataset summary").first.click()
    assert page.locator(".worst svg").first.is_visible()
    context.close()
