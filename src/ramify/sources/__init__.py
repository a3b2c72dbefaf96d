"""Readers of original dataset files: one module per format, each found by its `FORMAT`.

A module of this package becomes a format by defining

    FORMAT = Format(name=..., options=Options, read=read)

where `Options` states the recipe keys of the format and `read` yields `Structures` in chunks, in eV, eV/Å and Å, with
memory that does not grow with the file.
"""

import importlib
import pkgutil
from functools import cache
from importlib.util import find_spec

from ramify.sources.base import Format


@cache
def formats() -> dict[str, Format]:
    """Every format by the name that recipes use, found by importing the modules of this package."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        declared = getattr(importlib.import_module(f"{__name__}.{module.name}"), "FORMAT", None)
        if declared is not None:
            found[declared.name] = declared
    return found


def find_format(name: str) -> Format | None:
    """The format that recipes call so; None where there is none.

    A module named like its format is imported alone: together they load ASE's databases and more, which takes longer
    than all else that reading a recipe does.
    """
    if name.isidentifier() and find_spec(f"{__name__}.{name}") is not None:
        declared = getattr(importlib.import_module(f"{__name__}.{name}"), "FORMAT", None)
        if declared is not None and declared.name == name:
            return declared
    return formats().get(name)
