"""Rendering of self-contained HTML pages in the style of the report."""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import re
from collections.abc import Mapping
from datetime import datetime

import jinja2
from markupsafe import Markup

import ramify
from ramify.report.svg import Drawing
from ramify.report.table_format import format_error

FEW_GROUPS = 10
"""Number of test groups below which a page warns: the relative uncertainty of a mean error is about 1/sqrt(n)."""


def environment(package: str) -> jinja2.Environment:
    """Templates in the folder of a package; they may include `report.css`, and use `show(drawing)` and `written`."""
    loaders = [jinja2.PackageLoader(name, "") for name in dict.fromkeys((package, "ramify.report"))]
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    keys = itertools.count(1)

    def show(drawing: Drawing) -> Markup:
        """The figure with unique ids; its SVG is trusted, since all texts in it are escaped."""
        return Markup(drawing.inline(f"p{next(keys)}"))

    found.globals.update(show=show, written=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}")
    found.filters.update(breakable=breakable, clock=clock, error=format_error, thousands=lambda n: f"{n:,}")
    return found


def clock(seconds: float) -> str:
    """A duration in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def made_with(*packages: str) -> str:
    """Versions of the software that made a page: of this program, of packages and of Python."""
    listed = (f"{name} {importlib.metadata.version(name)}" for name in packages)
    return ", ".join([f"ramify {ramify.__version__}", *listed, f"Python {platform.python_version()}"])


def few_groups(split: str, groups: Mapping[str, int | None]) -> list[str]:
    """A line that names the datasets with few groups in the evaluated split; None: the number is not known."""
    few = [f"{dataset} {count}" for dataset, count in groups.items() if count is not None and count < FEW_GROUPS]
    if not few:
        return []
    return [
        f"The {split} splits hold few groups (molecules, reactions, materials, ...): {', '.join(few)}. "
        "These errors say little about other groups."
    ]


def breakable(name: str) -> Markup:
    """A long name or path that a browser may break after its separators, never inside a word or a number."""
    parts = re.split(r"(?<=[/_\-\[=])|(?<=\.)(?!\d)", name)
    return Markup("<wbr>").join(parts)
