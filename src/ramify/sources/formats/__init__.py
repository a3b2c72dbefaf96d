"""Readers of original dataset files: one module per format, each found by its `FORMAT`.

A module of this package, or of a folder below it, becomes a format by defining

    FORMAT = Format(name=..., options=Options, read=read)

where `Options` states the recipe keys of the format and `read` yields `Structures` in chunks, in eV, eV/Å and Å, with
memory that does not grow with the file.
"""

import importlib
import pkgutil
from functools import cache

from ramify.sources.base import Format


@cache
def formats() -> dict[str, Format]:
    """Every format by the name that recipes use, found by importing the modules of this package."""
    found = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        declared = getattr(importlib.import_module(module.name), "FORMAT", None)
        if declared is not None:
            found[declared.name] = declared
    return found
