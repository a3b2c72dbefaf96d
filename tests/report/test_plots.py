"""Figures: their numbers (also in descriptions for screen readers), the places of 118 elements, SVG for a page."""

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ramify.elements import MAX_NUMBER, NUMBERS, SYMBOLS
from ramify.errors import RamifyError
from ramify.evaluate.metrics import ElementErrors
from ramify.evaluate.results import Results
from ramify.report import figures, plots
from ramify.report.periodic_table import cell_position, periodic_table
from ramify.report.svg import PALETTE, Canvas, Drawing, colors, plain, short_count


@pytest.fixture(scope="module")
def drawn(run: Path) -> figures.Figures:
    return figures.draw(Results.open(run))


def texts(drawing: Drawing) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing.svg).iter("text")]


def test_parity_tells_the_errors() -> None:
    true = np.array([0.0, 1.0, 2.0, np.nan])
    drawing = plots.parity(
        true, true + np.array([0.1, -0.3, 0.2, 0.0]), quantity="energy", color=PALETTE[0], dataset="a"
    )
    assert drawing is not None
    assert drawing.alt == ("a: 3 predicted energies per atom against their labels; MAE 0.2000, RMSE 0.2160 eV/atom")
    assert {"label, eV/atom", "prediction, eV/atom", "MAE 0.2000", "RMSE 0.2160"} <= set(texts(drawing))
    assert plots.parity(true * np.nan, true, quantity="forces", color=PALETTE[0], dataset="a") is None


@pytest.mark.parametrize("points", [3, 100_000])
def test_parity_stays_small_however_many_points(points: int) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(points, 3))
    drawing = plots.parity(true, true + rng.normal(size=true.shape), quantity="forces", color="#0072b2", dataset="a")
    assert drawing is not None
    assert len(drawing.svg) < 120_000
    assert "data:image/png" in drawing.svg


def test_parity_of_equal_labels() -> None:
    assert plots.parity(np.zeros(4), np.zeros(4), quantity="forces", color=PALETTE[0], dataset="a") is not None


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60))
def test_cumulative_curve_is_the_fraction_below(values: list[float]) -> None:
    x, fraction = plots._cumulative(np.array(values))
    assert (np.diff(x) >= -1e-12 * x[1:]).all()
    assert fraction[0] == 0
    assert fraction[-1] == 1
    assert x[0] == min(values)
    assert x[-1] == pytest.approx(max(values))
    below = np.mean(np.array(values)[:, None] <= x * (1 + 1e-9), axis=0)
    assert (below >= fraction * (1 - 1 / len(values)) - 1e-9).all()


def test_distribution_states_medians_and_survives_exact_predictions() -> None:
    drawing = plots.distribution(
        {"a": np.array([0.0, 0.1, 0.2, np.nan]), "b": np.array([np.nan])},
        trivial={"a": np.array([1.0]), "b": np.array([1.0])},
        quantity="energy",
        palette=colors(["a", "b"]),
    )
    assert drawing is not None
    assert drawing.alt.endswith("medians in eV/atom: a 0.1000")
    nothing = {"a": np.full(3, np.nan)}
    assert plots.distribution(nothing, trivial=nothing, quantity="forces", palette={"a": PALETTE[0]}) is None


def test_element_errors_are_sorted_by_atomic_number_and_name_the_worst() -> None:
    errors = {
        "a": {"O": ElementErrors(3, 1, 0.1, 0.5), "H": ElementErrors(4, 1, 0.1, 0.2)},
        "b": {"Fe": ElementErrors(3, 1, 0.1, 0.7), "U": ElementErrors(3, 1, 0.1, None)},
    }
    drawing = plots.element_errors(errors, quantity="forces", palette=colors(errors))
    assert drawing is not None
    assert [t for t in texts(drawing) if t in NUMBERS] == ["H", "O", "Fe"]
    assert "largest 0.7000 eV/Å for Fe in b" in drawing.alt


def test_many_elements_stand_in_rows_that_fit_a_page() -> None:
    symbols = SYMBOLS[1:90]
    errors = {"a": {symbol: ElementErrors(3, 2, 0.01, 0.1 * k) for k, symbol in enumerate(symbols, 1)}}
    drawing = plots.element_errors(errors, quantity="forces", palette=colors(errors))
    assert drawing is not None
    assert drawing.width <= 700
    assert [text for text in texts(drawing) if text in symbols] == list(symbols)
    assert texts(drawing).count("force MAE, eV/Å") == 3


def test_learning_curves_need_measurements() -> None:
    val = [
        {"step": i, "epoch": i, "datasets": {"a": {"energy_mae": 1 / i, "forces_mae": None, "trivial_energy_mae": 0.4}}}
        for i in range(1, 5)
    ]
    drawing = plots.learning_curve(val, dataset="a", quantity="energy", color="#123456", epoch=4)
    assert drawing is not None
    assert "from 1.0000 at the first to 0.2500" in drawing.alt
    assert "trivial 0.4000" in drawing.alt
    assert "trivial" in texts(drawing)
    assert plots.learning_curve(val, dataset="a", quantity="forces", color="#123456", epoch=None) is None
    relative = plots.relative_curves(val, quantity="energy", palette={"a": "#123456"}, epoch=None)
    assert relative is not None
    assert relative.alt.endswith("a 0.62")
    assert plots.relative_curves([], quantity="energy", palette={"a": "#123456"}, epoch=None) is None


@pytest.mark.parametrize("records", [1, 30, 5000])
def test_training_curve(records: int) -> None:
    train = [{"step": i, "epoch": i / 10, "loss": 2.0 / (i + 1)} for i in range(records)]
    drawing = plots.training_curve([*train, {"step": 9999, "epoch": 999, "loss": None}], key="loss", label="loss")
    assert drawing is not None
    assert len(drawing.svg) < 60_000
    assert drawing.alt.startswith("loss during training: first 2, last ")
    assert plots.training_curve(train, key="lr", label="rate") is None


def test_every_element_has_a_place_of_its_own() -> None:
    places = {SYMBOLS[z]: cell_position(z) for z in range(1, MAX_NUMBER + 1)}
    assert len(set(places.values())) == 118
    known = {"H": (1, 1), "He": (18, 1), "B": (13, 2), "Al": (13, 3), "Sc": (3, 4), "Zn": (12, 4), "Fe": (8, 4),
             "I": (17, 5), "Ba": (2, 6), "La": (3, 8.5), "Lu": (17, 8.5), "Hf": (4, 6), "Rn": (18, 6), "Ac": (3, 9.5),
             "Lr": (17, 9.5), "Rf": (4, 7), "Og": (18, 7)}  # fmt: skip
    assert {symbol: places[symbol] for symbol in known} == known


def test_periodic_table_shows_counts_and_colours_by_their_logarithm() -> None:
    drawing = periodic_table({"H": 1_000_000, "C": 1000, "Fe": 1, "He": 0}, tooltips={"C": "a: 7\n<b>: 993"})
    shown = texts(drawing)
    assert {"1.0M", "1000", "1"} <= set(shown)
    assert all(SYMBOLS[z] in shown for z in range(1, 119))
    root = ElementTree.fromstring(drawing.svg)
    groups = {g.get("id"): g for g in root.iter("g") if (g.get("id") or "").startswith("element-")}
    assert len(groups) == 118
    assert groups["element-6"].findtext("title") == "C: 1,000 atoms\na: 7\n<b>: 993"
    assert groups["element-2"].find("title") is None

    def lightness(z: int) -> float:
        fill = re.search(r"fill: #(\w{6})", groups[f"element-{z}"].find("path").get("style"))  # type: ignore[union-attr, arg-type]
        assert fill is not None
        return sum(bytes.fromhex(fill[1]))

    iron, carbon, hydrogen = lightness(26), lightness(6), lightness(1)
    assert iron > carbon > hydrogen
    assert "fill: none" in groups["element-2"].find("path").get("style")  # type: ignore[union-attr, operator]
    assert drawing.alt == "Periodic table of 3 elements by number of atoms; most: H 1,000,000, C 1,000, Fe 1"


def test_periodic_table_of_nothing_and_of_nonsense() -> None:
    assert periodic_table({}).alt == "Periodic table of 0 elements by number of atoms"
    with pytest.raises(RamifyError, match="'Xx' is not a chemical element"):
        periodic_table({"Xx": 3})


def test_same_colour_for_the_same_dataset_in_every_figure(run: Path, drawn: figures.Figures) -> None:
    palette = colors(Results.open(run).datasets)
    assert len(set(palette.values())) == 5
    for shown in drawn.datasets:
        assert len(shown.drawings) == 4
        for caption, drawing in shown.drawings:
            if "training" in caption:
                others = set(palette.values()) - {palette[shown.dataset]}
                assert palette[shown.dataset] in drawing.svg
                assert not any(c in drawing.svg for c in others)
    for _, drawing in (*drawn.distributions, *drawn.elements, *drawn.relative):
        assert all(color in drawing.svg for color in palette.values())


def test_more_datasets_than_colours_differ_in_dashes() -> None:
    names = [f"d{i}" for i in range(20)]
    palette, styles = colors(names), plots.line_styles(names)
    assert len({(palette[n], styles[n]) for n in names}) == 20


def test_figures_are_fit_for_a_page(drawn: figures.Figures, tmp_path: Path) -> None:
    assert drawn.table is not None
    for drawing in (drawn.table, drawn.distributions[0][1], drawn.datasets[0].drawings[1][1]):
        assert "http" not in drawing.svg
        assert "<style" not in drawing.svg
        assert "DejaVu" not in drawing.svg
        root = ElementTree.fromstring(drawing.svg)
        assert root.get("aria-label") == drawing.alt
        assert root.get("viewBox")
        assert root.get("width") is None
        assert "var(--muted, #69707b)" in drawing.svg
        inlined = drawing.inline("x7")
        ids = re.findall(r'\bid="([^"]*)"', inlined)
        assert len(ids) == len(set(ids))
        assert all(i.startswith("x7-") for i in ids)
        for target in re.findall(r'(?:url\(|href=")#([^")]*)', inlined):
            assert target in ids
    drawn.table.save(tmp_path / "table.svg")
    assert ElementTree.parse(tmp_path / "table.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_figure_is_drawn_once_and_laid_out_as_matplotlib_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its constrained layout, which takes a drawing of its own there."""

    def plot(axes: Axes) -> None:
        axes.plot([1, 3], [-2000, 5])
        axes.set(xlabel="a long label", ylabel="two\nlines")

    draws: list[Figure] = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda figure, *a, **k: draws.append(figure) or draw(figure, *a, **k))
    with Canvas(204, 196) as canvas:
        plot(canvas.axes())
        canvas.drawing("a line")
        assert len(draws) == 1
        engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
        reference = Figure(figsize=(204 / 72, 196 / 72), layout=engine)
        plot(reference.add_subplot())
        reference.savefig(io.BytesIO(), format="svg")
    assert len(draws) == 3
    (found,), (expected,) = canvas.figure.axes, reference.axes
    np.testing.assert_allclose(found.get_position().bounds, expected.get_position().bounds, rtol=1e-6)


def test_figures_are_the_same_every_time() -> None:
    true = np.linspace(0, 1, 50)
    first, second = (plots.parity(true, true**2, quantity="energy", color=PALETTE[0], dataset="a") for _ in range(2))
    assert first == second


def test_worst_structures_and_quantiles_equal_a_plain_search(run: Path, drawn: figures.Figures) -> None:
    found = Results.open(run).predictions("mptrj")
    assert found is not None
    listed = next(d for d in drawn.datasets if d.dataset == "mptrj").worst
    worst = {entry.quantity: [(row.name, row.error) for row in entry.rows] for entry in listed}
    energy = np.abs(found.error("energy"))
    assert worst["energy"][0] == (found.names[energy.argmax()], pytest.approx(energy.max()))
    assert [v for _, v in worst["energy"]] == pytest.approx(sorted(energy, reverse=True)[:5])
    norms = np.sqrt((found.error("forces") ** 2).sum(axis=1))
    structure = np.repeat(np.arange(len(energy)), found.n_atoms)[norms.argmax()]
    assert worst["forces"][0] == (found.names[structure], pytest.approx(norms.max()))
    spread = next(s for s in drawn.spreads if s.dataset == "mptrj")
    assert spread.energy == pytest.approx([np.quantile(energy, q) for q in (0.5, 0.9, 0.99, 1)])


def test_predictions_that_disagree_with_the_evaluation_are_noticed(
    make_run: Callable[..., Path], tmp_path: Path, drawn: figures.Figures
) -> None:
    assert drawn.notes == []
    path = make_run(tmp_path / "r", only=("ani1x",))
    file = path / "predictions" / "ani1x.npz"
    columns = dict(np.load(file))
    columns["energy_predicted"] = columns["energy_true"] + 0.5
    np.savez(file, **columns)
    (note,) = figures.draw(Results.open(path)).notes
    assert note.startswith("ani1x: the saved predictions have an MAE of 0.5000 in energy")
    assert "evaluation.json states 0.0123" in note


@pytest.mark.parametrize(
    ("count", "text"),
    [(7, "7"), (9999, "9999"), (10_000, "10k"), (12_345, "12k"), (999_400, "999k"), (999_999, "1.0M"),
     (3_449_000, "3.4M"), (12_000_000, "12M"), (24_000_000_000, "24G")],
)  # fmt: skip
def test_short_counts(count: int, text: str) -> None:
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.01, "0.01"), (1, "1"), (1000, "1000"), (1e-5, "10⁻⁵"), (2.5e-4, "2.5·10⁻⁴"), (1e6, "10⁶")]
)
def test_tick_numbers(value: float, text: str) -> None:
    assert plain(value) == text
