"""Style of the figures, and conversion of matplotlib figures to SVG for HTML pages."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK, MUTED, RULE, PAPER = "#1b2027", "#69707b", "#dfe2e6", "#fffffe"
"""Text, secondary text, lines, background. In a page they follow its theme as CSS variables."""
THEME = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"}

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#8c510a")
"""Okabe and Ito's colour-blind-safe colours (jfly.uni-koeln.de/color), their black and yellow replaced by violet and
brown (text and axes are black already, yellow lines vanish on white)."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)))
"""Line styles that distinguish datasets when the colours repeat."""

SMALLEST_TEXT = 9.0
"""Size of the smallest text of a figure at its natural width, CSS pixels."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ramify",  # reproducible ids
    "text.parse_math": False,  # the name of a dataset may contain a $
    "font.family": "DejaVu Sans",  # included in matplotlib; replaced by the system font in the SVG
    "font.size": SMALLEST_TEXT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
SVG_DPI = 72
"""Resolution of the SVG files of matplotlib."""
RASTER_DPI = 220
"""Resolution of rasterised parts with thousands of points: sharp on a 2x screen."""

LARGEST_SCALE = 1.35
"""Largest magnification of a figure in a page; beyond it, its text would be larger than that of the page."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Drawing:
    """A figure as SVG.

    Attributes:
        svg: the `<svg>` element without a namespace, for HTML.
        alt: text description, for screen readers.
        width: natural width in CSS pixels.
    """

    svg: str
    alt: str
    width: float

    @classmethod
    def from_svg(cls, svg: str, alt: str, width: float, tooltips: Mapping[str, str] | None = None) -> Drawing:
        """A figure from the text of an SVG file, with a description and the fonts and colours of the page.

        Args:
            svg: text with a viewBox of that width.
            alt, width: see the attributes.
            tooltips: tooltip texts by the id of a group.
        """
        return cls(_clean(svg, alt, width, tooltips or {}), alt, width)

    def with_data(self, **values: str) -> Drawing:
        """With `data-` attributes, for the script of a page."""
        attributes = "".join(f' data-{name}="{html.escape(value)}"' for name, value in values.items())
        return replace(self, svg=self.svg.replace("<svg ", f"<svg{attributes} ", 1))

    def inline(self, key: str) -> str:
        """The element with every id prefixed by `key`, so that a page can contain several."""
        svg = re.sub(r'\bid="', f'id="{key}-', self.svg)
        svg = re.sub(r'href="#', f'href="#{key}-', svg)
        return re.sub(r"url\(#", f"url(#{key}-", svg)

    def save(self, path: Path) -> None:
        """Writes a stand-alone SVG file."""
        svg = self.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        Path(path).write_text(svg, encoding="utf-8")


@dataclass
class Canvas:
    """A figure in the common style: `with Canvas(width, height) as canvas: ...`, then `canvas.drawing(alt)`.

    Width and height are in units of 1/72 inch, which become CSS pixels.
    """

    width: float
    height: float
    figure: Figure = field(init=False)

    def __enter__(self) -> Canvas:
        self._style = rc_context(STYLE)  # type: ignore[arg-type]  # the stubs accept literal keys only
        self._style.__enter__()
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=SVG_DPI, layout=layout)
        FigureCanvasSVG(self.figure)  # the layout uses its text measurements
        return self

    def __exit__(self, *exception: object) -> None:
        self._style.__exit__(None, None, None)

    def axes(self) -> Axes:
        """One set of axes over the whole figure."""
        return self.figure.add_subplot()

    def frame(self, axes: Axes) -> dict[str, str]:
        """Place and limits of axes with equal limits, once drawn: left, top, right and bottom in the figure's viewBox;
        lowest and highest value."""
        box = axes.get_position()
        left, right, top, bottom = box.x0 * self.width, box.x1 * self.width, (1 - box.y1), (1 - box.y0)
        place = (left, top * self.height, right, bottom * self.height)
        return {
            "frame": " ".join(f"{value:.3f}" for value in place),
            "limits": " ".join(repr(float(value)) for value in axes.get_xlim()),
        }

    def drawing(self, alt: str) -> Drawing:
        """The figure as SVG."""
        if (layout := self.figure.get_layout_engine()) is not None:
            layout.execute(self.figure)
            self.figure.set_layout_engine(None)  # matplotlib would draw the figure a second time
        buffer = io.StringIO()
        self.figure.savefig(
            buffer, format="svg", dpi=RASTER_DPI, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        return Drawing.from_svg(buffer.getvalue(), alt, self.width)


def colors(datasets: Iterable[str]) -> dict[str, str]:
    """The colour of each dataset, by its order in the recipe."""
    return {dataset: PALETTE[i % len(PALETTE)] for i, dataset in enumerate(datasets)}


def line_styles(datasets: Iterable[str]) -> dict[str, object]:
    """The line style of each dataset: solid until the colours repeat."""
    return {dataset: DASHES[i // len(PALETTE) % len(DASHES)] for i, dataset in enumerate(datasets)}


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic over its current limits, with ticks at decades, or at parts of decades on short
    axes."""
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = math.log10(high / low)
    if decades < 0.7:  # too short to contain a power of ten for certain
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis=which, which="minor", length=0)


def plain(value: float) -> str:
    """The label of a tick: 0.01, 1, 1000; powers of ten beyond that."""
    if value > 0 and not 1e-3 <= value < 1e5:
        exponent = math.floor(math.log10(value) + 1e-9)
        factor = f"{value / 10**exponent:.3g}"
        return ("" if factor == "1" else f"{factor}·") + "10" + str(exponent).translate(SUPERSCRIPTS)
    return f"{value:g}"


def short_count(count: float) -> str:
    """A count in at most four characters: 950, 12k, 3.4M."""
    for limit, factor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (math.inf, 1e9, "G")):
        if count < limit * (0.9995 if factor > 1 else 1):  # 999,999 is 1.0M, not 1000k
            scaled = count / factor
            return f"{scaled:.1f}{unit}" if factor > 1 and scaled < 9.95 else f"{scaled:.0f}{unit}"
    return "∞"


def _clean(svg: str, alt: str, width: float, tooltips: Mapping[str, str]) -> str:
    """A matplotlib SVG as an element for HTML: without prologue, namespaces and metadata; fonts and colours of the
    page."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # would style the page
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = svg.replace("'DejaVu Sans'", "system-ui").replace("DejaVu Sans", "system-ui")
    for color, variable in THEME.items():
        svg = svg.replace(color, f"var({variable}, {color})")
    start, rest = svg.split(">", 1)
    start = re.sub(r'\s(width|height|version)="[^"]*"', "", start)  # the page sets the size
    label = html.escape(alt)
    style = f"max-width: {LARGEST_SCALE * width:.0f}px; --natural: {width:.0f}px"
    svg = f'{start} style="{style}" role="img" aria-label="{label}" stroke-linejoin="round">{rest}'
    for gid, text in tooltips.items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(text)}</title>')
    return re.sub(r"\n\s*", "\n", svg).strip()
