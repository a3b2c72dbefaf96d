"""Readers of original dataset files: one module per format, found by its attribute `FORMAT`.

A module of this package, or of a subpackage, adds a format by defining

    FORMAT = Format(name=..., options=Options, read=read)

where `Options` defines the recipe keys of the format and `read` yields `Structures` in chunks, in eV, eV/Å and Å, with
memory independent of the size of the file.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache

from ramify.sources.base import Format


@cache
def formats() -> dict[str, Format]:
    """All formats by their name in recipes, found by importing the modules of this package."""
    return {declared.name: declared for name in _modules() if (declared := _declared(name)) is not None}


def find_format(name: str) -> Format | None:
    """Returns the format with this name in recipes, or None.

    A module with the name of its format is imported alone: importing all modules, with ASE's databases, would dominate
    the time of reading a recipe.
    """
    for module in _modules():
        if module.rpartition(".")[2] == name and (found := _declared(module)) is not None and found.name == name:
            return found
    return formats().get(name)


def _modules() -> Iterator[str]:
    """Dotted names of the modules of this package and its subpackages; only subpackages are imported."""
    return (module.name for module in pkgutil.walk_packages(__path__, f"{__name__}.") if not module.ispkg)


def _declared(module: str) -> Format | None:
    declared: Format | None = getattr(importlib.import_module(module), "FORMAT", None)
    return declared
