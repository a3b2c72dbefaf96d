"""Rendering of self-contained HTML pages in the style of the report."""

from __future__ import annotations

import itertools
import re

import jinja2
from markupsafe import Markup

from ramify.report.svg import Drawing


def environment(package: str) -> jinja2.Environment:
    """Templates in the folder of a package; they may include `report.css` and use `show(drawing)`."""
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

    found.globals["show"] = show
    found.filters["breakable"] = breakable
    return found


def breakable(name: str) -> Markup:
    """A long name or path that a browser may break after its separators, never inside a word or a number."""
    parts = re.split(r"(?<=[/_\-\[=])|(?<=\.)(?!\d)", name)
    return Markup("<wbr>").join(parts)
