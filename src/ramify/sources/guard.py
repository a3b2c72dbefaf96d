"""Around every reader: what it did not foresee in a damaged or foreign file is an error that names the file."""

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
    """The same reader. Whatever it raises but a `RamifyError` becomes one; structures with atomic numbers that no
    element has go to the quarantine, which is its third argument, if it yields any.

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
        except Exception as error:  # of h5py, numpy, ASE, or of a reader that met what nobody thought of
            raise RamifyError(
                f"{path} cannot be read as format '{layout}': {type(error).__name__}: {error}",
                fix="take another copy of the file, or name the format it has",
            ) from error

    reading.__doc__ = read.__doc__
    return reading


def _of_elements(structures: Structures, quarantine: Quarantine) -> Structures:
    """The structures whose atoms are all elements."""
    strange = (structures.numbers < 1) | (structures.numbers > MAX_NUMBER)
    if not strange.any():
        return structures
    refused = np.unique(structures.structure_of_atom[strange])
    for index in refused.tolist():
        first, last = structures.offsets[index : index + 2]
        numbers = sorted(set(structures.numbers[first:last][strange[first:last]].tolist()))
        quarantine.add(structures.name(index), NO_ELEMENT, f"numbers {numbers}")
    return structures.take(np.delete(np.arange(len(structures)), refused))
