"""Small static drawings of structures as SVG: atoms as circles, bonds and cell edges as lines."""

from __future__ import annotations

import itertools

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.symbols import Symbols
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from ramify.report.svg import MUTED, Drawing

Array = NDArray[np.floating]

WIDTH, HEIGHT, MARGIN = 112.0, 92.0, 3.0
"""CSS pixels."""
ATOM = 0.55
"""Radius of a circle as a fraction of the covalent radius."""
BONDED = 1.2
"""Largest distance of two bonded atoms as a multiple of the sum of their covalent radii."""
MOST_BONDED = 400
"""Number of atoms up to which bonds are drawn."""


def picture(numbers: NDArray[np.integer], positions: Array, cell: Array) -> Drawing:
    """A structure from the side of its largest extent, nearer atoms over farther ones.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3) Å.
        cell: (3, 3) Å; rows are lattice vectors; its edges are drawn if it has a volume.
    """
    edges = cell_edges(cell) if abs(np.linalg.det(cell)) > 1e-6 else np.zeros((0, 2, 3))
    points = np.concatenate([positions, edges.reshape(-1, 3)]).astype(np.float64)
    turned = (points - points.mean(0)) @ _axes(points)
    radii = ATOM * covalent_radii[numbers]
    low = np.minimum(turned[: len(numbers), :2] - radii[:, None], np.inf).min(0, initial=np.inf)
    high = (turned[: len(numbers), :2] + radii[:, None]).max(0, initial=-np.inf)
    low, high = np.minimum(low, turned[:, :2].min(0)), np.maximum(high, turned[:, :2].max(0))
    size = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    scale = float((size / np.maximum(high - low, 1e-9)).min())
    scale = min(scale, 26.0)  # px/Å: a single atom does not fill the picture
    place = (turned[:, :2] - (low + high) / 2) * scale * np.array([1, -1]) + np.array([WIDTH, HEIGHT]) / 2
    atoms, depth = place[: len(numbers)], turned[: len(numbers), 2]
    shapes = [(-np.inf, _line(a, b, MUTED, 0.7)) for a, b in place[len(numbers) :].reshape(-1, 2, 2)]
    shapes += [
        ((depth[i] + depth[j]) / 2 - 1e-3, _line(atoms[i], atoms[j], MUTED, max(0.8, 0.16 * scale)))
        for i, j in bonds(numbers, positions)
    ]
    shapes += [
        (z, _circle(xy, r * scale, z_number)) for z, xy, r, z_number in zip(depth, atoms, radii, numbers, strict=True)
    ]
    drawn = "\n".join(shape for _, shape in sorted(shapes, key=lambda shape: shape[0]))
    formula = Symbols(numbers).get_chemical_formula()
    svg = f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}">\n{drawn}</svg>'
    return Drawing.from_svg(svg, f"Structure of {formula}", WIDTH)


def bonds(numbers: NDArray[np.integer], positions: Array) -> list[tuple[int, int]]:
    """Pairs of atoms closer than `BONDED` covalent distances, not across periodic boundaries; none of large
    structures."""
    if len(numbers) > MOST_BONDED:
        return []
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    radii = covalent_radii[numbers]
    near = np.triu(distance < BONDED * (radii[:, None] + radii[None]), k=1)
    return [(int(i), int(j)) for i, j in np.argwhere(near)]


def cell_edges(cell: Array) -> Array:
    """(12, 2, 3) ends of the edges of a cell, Å."""
    edges = []
    for axis in range(3):
        others = [cell[k] for k in range(3) if k != axis]
        for p, q in itertools.product((0, 1), repeat=2):
            start = p * others[0] + q * others[1]
            edges.append((start, start + cell[axis]))
    return np.array(edges)


def _axes(points: Array) -> NDArray[np.float64]:
    """(3, 3) rotation whose columns are the principal axes, the longest first; det = +1, so that no mirror image is
    drawn."""
    vectors = np.linalg.svd(points - points.mean(0), full_matrices=True)[2].T if len(points) > 1 else np.eye(3)
    vectors[:, 2] *= np.sign(np.linalg.det(vectors))
    return vectors


def _line(start: Array, end: Array, color: str, width: float) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" style="stroke: {color}; stroke-width: {width:.1f}"/>'


def _circle(center: Array, radius: float, number: int) -> str:
    fill = to_hex(jmol_colors[number])
    return (
        f'<circle cx="{center[0]:.1f}" cy="{center[1]:.1f}" r="{radius:.1f}" '
        f'style="fill: {fill}; stroke: #30363d; stroke-width: 0.6"/>'
    )
