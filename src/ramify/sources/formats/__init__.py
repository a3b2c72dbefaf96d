"""Readers of original dataset files: one module per format, each found by its `FORMAT`.

A module of this package, or of a folder below it, becomes a format by defining

    FORMAT = Format(name=..., options=Options, read=read)

where `Options` states the recipe keys of the format and `read` yields `Structures` in chunks, in eV, eV/Å and Å, with
memory that does not grow with the file.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache

from ramify.sources.base import Format


@cache
def formats() -> dict[str, Format]:
    """Every format by the name that recipes use, found by importing the modules of this package."""
    return {declared.name: declared for name in _modules() if (declared := _declared(name)) is not None}


def find_format(name: str) -> Format | None:
    """The format that recipes call `name`; None where there is none.

    A module with the name of its format is imported alone: all together they load ASE's databases and more, which takes
    longer than anything else in reading a recipe.
    """
    for module in _modules():
        if module.rpartition(".")[2] == name and (found := _declared(module)) is not None and found.name == name:
            return found
    return formats().get(name)


def _modules() -> Iterator[str]:
    """Dotted names of the modules of this package and of the folders below it; only folders are imported."""
    return (module.name for module in pkgutil.walk_packages(__path__, f"{__name__}.") if not module.ispkg)


def _declared(module: str) -> Format | None:
    declared: Format | None = getattr(importlib.import_module(module), "FORMAT", None)
    return declared
