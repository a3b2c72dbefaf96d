"""Wrapper of readers: converts unexpected exceptions on damaged or foreign files to errors that name the file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ramify.elements import MAX_NUMBER
from ramify.errors import RamifyError
from ramify.sources.quarantine import Quarantine
from ramify.structures import Structures

NO_ELEMENT = "atomic number of no element"


def guarded(read: Callable[..., Iterator[Any]], layout: str) -> Callable[..., Iterator[Any]]:
    """Wraps a reader: exceptions are converted to `RamifyError`, and structures with invalid atomic numbers are added
    to the quarantine, which is the third argument of readers that yield structures.

    Args:
        read: `read(path, options, ...)`, a generator.
        layout: name of the format.
    """

    def reading(path: Path, options: Any, *rest: Any) -> Iterator[Any]:
        try:
            for found in read(path, options, *rest):
                yield _of_elements(found, rest[0]) if isinstance(found, Structures) else found
        except (RamifyError, MemoryError):
            raise
        except Exception as error:  # any exception of h5py, numpy, ASE or the reader itself
            raise RamifyError(
                f"{path} cannot be read as format '{layout}': {type(error).__name__}: {error}",
                fix="use another copy of the file, or set the correct format",
            ) from error

    reading.__doc__ = read.__doc__
    return reading


def _of_elements(structures: Structures, quarantine: Quarantine) -> Structures:
    """Selects the structures with valid atomic numbers."""
    strange = (structures.numbers < 1) | (structures.numbers > MAX_NUMBER)
    if not strange.any():
        return structures
    refused = np.unique(structures.structure_of_atom[strange])
    for index in refused.tolist():
        first, last = structures.offsets[index : index + 2]
        numbers = sorted(set(structures.numbers[first:last][strange[first:last]].tolist()))
        quarantine.add(structures.name(index), NO_ELEMENT, f"numbers {numbers}")
    return structures.take(np.delete(np.arange(len(structures)), refused))
