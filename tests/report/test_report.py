"""The report: one well-formed page that needs nothing from outside, holds every dataset, and trusts no name."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ramify.errors import RamifyError
from ramify.evaluate.results import Results
from ramify.report import report
from ramify.report.page import clock

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Page(HTMLParser):
    """Every element closed in order; ids, references and text gathered."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "action", "data", "srcset"):
                self.references.append(value or "")


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    path = report.write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_its_anchors_lead_somewhere(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    inside = [r for r in page.references if r.startswith("#")]
    assert len(inside) > 10
    assert all(r[1:] in page.ids for r in inside)


def test_page_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert all(r.startswith(("#", "data:")) for r in page.references)
    assert all(target.startswith(("#", "data:")) for target in re.findall(r"url\(['\"]?([^'\")]*)", html))
    assert "http:" not in html
    assert "https:" not in html
    assert "default-src 'none'" in html, "browsers refuse whatever the page would load"
    assert "@import" not in html


def test_page_holds_every_dataset_and_number(html: str, planted: dict[str, tuple[float, ...]]) -> None:
    text = " ".join(Page(html).text)
    for dataset, numbers in planted.items():
        assert dataset in text
        for number in numbers:
            assert f"{number:.4f}" in text, (dataset, number)
    phrases = [
        "Every branch on every dataset", "force above limit 3, duplicate 12", "C2Fe", "0.981", "no close pairs",
        "wB97X/6-31G(d)", "3 min 20 s", "-13.6000", "cutoff: 5.0", "transition1x: 4 groups are in",
    ]  # fmt: skip
    for phrase in phrases:
        assert phrase in text, phrase
    assert html.count('role="img"') == 5 * 4 + 2 + 2 + 2 + 3 + 1 + 5 + 5 * 2 * 5, (
        "all figures stand in the page, with a description"
    )


def test_a_run_shows_its_errors_in_a_notebook(run: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    shown = Results.open(run)._repr_html_()
    assert "<td>ani1x</td><td>ani1x</td><td>0.0123</td><td>0.0601</td><td>0.1111</td><td>0.6794</td>" in shown
    nasty = make_run(tmp_path / "r", only=("qm7x",), rename={"qm7x": "<b>"})
    assert "<b>" not in Results.open(nasty)._repr_html_()


def test_verdict_counts_what_beats_trivial(run: Path, html: str) -> None:
    assert report.verdict(Results.open(run)) == (
        "Beats the trivial predictors in energy on every dataset and in forces on 4 of 5 datasets (not alexandria). "
        "Of their errors, its own are 21 % in energy and 25 % in forces (geometric mean)."
    )
    assert "MTL-All is no better than trivial in the forces of alexandria" in html


def test_names_are_escaped(make_run: Callable[..., Path], tmp_path: Path) -> None:
    nasty = '<img src=x onerror=alert(1)>&"$x$'
    path = make_run(tmp_path / "r", only=("qm7x",), rename={"qm7x": nasty})
    html = report.write_report(path).read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert "img" not in page.tags
    assert "<img" not in html
    assert any(nasty in text for text in page.text)


def test_a_dataset_without_forces(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", only=("ani1x", "mptrj", "alexandria"), without_forces=("mptrj",))
    (path / "data.json").unlink()  # its periodic tables take longest to draw
    html = report.write_report(path).read_text(encoding="utf-8")
    assert "no label" in " ".join(Page(html).text)
    assert "in forces on 1 of 2 datasets (not alexandria)" in html


def test_charges_and_spins_are_counted(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", only=("qm7x",))
    data = json.loads((path / "data.json").read_text())
    (manifest,) = data.values()
    manifest["states"] = [{"charge": 1, "spin": None, "structures": {"train": 4321, "val": 0, "test": 5}}]
    (path / "data.json").write_text(json.dumps(data))
    text = " ".join(Page(report.write_report(path).read_text(encoding="utf-8")).text)
    assert "charge +1, spin not stated" in text
    assert "4,321" in text


def test_a_run_with_the_bare_minimum_says_what_it_lacks(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r")
    shutil.rmtree(path / "predictions")
    for name in ("metrics.jsonl", "data.json"):
        (path / name).unlink()
    text = " ".join(Page(report.write_report(path).read_text(encoding="utf-8")).text)
    for phrase in ("no predictions and no metrics.jsonl", "has no predictions", "no metrics.jsonl", "no data.json"):
        assert phrase in text


def test_one_branch_has_no_matrix(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", only=("ani1x", "qm7x"))
    (path / "metrics.jsonl").unlink()
    evaluation = json.loads((path / "evaluation.json").read_text())
    evaluation["rows"] = [{**row, "branch": "shared"} for row in evaluation["rows"] if row["branch"] == row["dataset"]]
    evaluation["branch_of"] = dict.fromkeys(evaluation["branch_of"], "shared")
    (path / "evaluation.json").write_text(json.dumps(evaluation))
    html = report.write_report(path).read_text(encoding="utf-8")
    assert "Every branch on every dataset" not in html
    assert "<h1>Baseline-All</h1>" in html


def test_a_failed_write_leaves_the_old_report(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run(tmp_path / "r", only=("ani1x",))
    (path / "report.html").write_text("old")
    before = sorted(p.name for p in path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(report, "render", lambda results: "new")
        patched.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RamifyError, match="No space left"):
            report.write_report(path)
    assert (path / "report.html").read_text() == "old"
    assert sorted(p.name for p in path.iterdir()) == before
    (path / "evaluation.json").unlink()
    with pytest.raises(RamifyError, match="fix: ramify evaluate"):
        report.write_report(path)


@pytest.mark.parametrize(
    ("value", "color"), [(0.5, "0 114 178"), (1.0, "213 94 0"), (3.0, "213 94 0"), (0.0, "0 114 178")]
)
def test_cells_are_blue_below_trivial_and_orange_from_there(value: float, color: str) -> None:
    assert color in report.share_style(value)
    assert report.share_style(None) == report.share_style(float("nan")) == ""
    assert report.share(1.0, 0.0) is None
    assert report.share(1.0, 4.0) == 0.25


def test_strength_of_a_cell_grows_with_distance_from_trivial() -> None:
    strengths = [float(report.share_style(v).split("/ ")[1].rstrip(")")) for v in (0.9, 0.5, 0.25, 0.01, 0.001)]
    assert strengths == sorted(strengths)
    assert strengths[-1] == strengths[-2] == 0.51


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1 min 0 s"), (5, "5 s"), (3725, "1 h 2 min")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
