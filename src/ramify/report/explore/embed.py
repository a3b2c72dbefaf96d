"""What the script of a report needs: structures with labels and predictions, and the viewer, compressed in the page.

The viewer is 3Dmol.js 2.5.5 (BSD-3-Clause, https://3dmol.org), `build/3Dmol-min.js` of the npm package `3dmol`, with
its licence in the same folder. It is published by N. Rego and D. Koes, doi:10.1093/bioinformatics/btu829.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramify.evaluate.results import StoredPredictions
from ramify.labels import LABELS
from ramify.report.explore.worst import largest

VIEWER = "3Dmol-2.5.5.min.js"
MOST_ATOMS = 20_000
"""Atoms, each a point of the figure of forces, of a dataset that a page contains."""
MOST_ATOMS_OF_PAGE = 100_000
"""Atoms of all datasets together."""


def choose(found: StoredPredictions, most: int) -> NDArray[np.int64]:
    """Indices of the structures that a page contains, with at most `most` atoms in total.

    All if possible. Otherwise those with the largest errors of each label first, then others, evenly spaced over the
    split.
    """
    sizes = found.n_atoms.astype(np.int64)
    if sizes.sum() <= most:
        return np.arange(len(sizes))
    first = list(dict.fromkeys(structure for quantity in found.true for structure, _ in largest(found, quantity)))
    others = np.setdiff1d(np.arange(len(sizes)), first)
    left = max(1, most - int(sizes[first].sum()))
    spaced = others[:: -(-int(sizes[others].sum()) // left)]
    order = np.concatenate([np.array(first, np.int64), spaced])
    return np.sort(order[np.cumsum(sizes[order]) <= most])


def payload(found: Mapping[str, StoredPredictions]) -> dict[str, Any]:
    """The structures of each dataset that a page contains, as plain data.

    Positions are rounded to 0.001 Å, forces to 0.0001 eV/Å and other values to six digits.

    Args:
        found: predictions by dataset; those saved without structures are left out.
    """
    there = {dataset: stored for dataset, stored in found.items() if stored.geometry is not None}
    most = min(MOST_ATOMS, MOST_ATOMS_OF_PAGE // max(1, len(there)))
    return {dataset: _dataset(stored, choose(stored, most)) for dataset, stored in there.items()}


def _dataset(found: StoredPredictions, chosen: NDArray[np.int64]) -> dict[str, Any]:
    geometry = found.geometry
    assert geometry is not None
    atoms = np.isin(np.repeat(np.arange(len(found.n_atoms)), found.n_atoms), chosen)
    group_names, groups = np.unique(geometry.groups[chosen], return_inverse=True)
    cells = geometry.cell[chosen]
    return {
        "structures": len(found.n_atoms),
        "index": chosen.tolist(),
        "names": found.names[chosen].tolist(),
        "groups": groups.tolist(),
        "group_names": group_names.tolist(),
        "sizes": found.n_atoms[chosen].tolist(),
        "numbers": found.numbers[atoms].tolist(),
        "positions": _rounded(geometry.positions[atoms], 3),
        "cells": [_rounded(cell, 3) if np.abs(np.linalg.det(cell)) > 1e-6 else None for cell in cells],
        "labels": {
            name: {
                "unit": LABELS[name].error_unit,
                "per_atom": LABELS[name].per_atom,
                "shape": list(LABELS[name].shape),
                **{
                    kind: _values(values[name][atoms if LABELS[name].per_atom else chosen], name)
                    for kind, values in (("true", found.true), ("predicted", found.predicted))
                },
            }
            for name in found.true
        },
    }


def _values(values: NDArray[np.floating], name: str) -> list[float | None]:
    if name == "forces":
        return _rounded(values, 4)
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.ravel().tolist()]


def _rounded(values: NDArray[np.floating], digits: int) -> list[float | None]:
    flat = np.round(values.astype(np.float64), digits).ravel().tolist()
    return [value if np.isfinite(value) else None for value in flat]


def compressed(data: Any) -> str:
    """Data as JSON, compressed by gzip, in base64: no text in it can end the element of the page that holds it."""
    return _packed(json.dumps(data, separators=(",", ":"), allow_nan=False).encode())


def viewer() -> str:
    """The viewer's script, compressed as `compressed` does."""
    return _packed(files("ramify.report.explore").joinpath("viewer", VIEWER).read_bytes())


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
