"""Figures of materials properties: energy against volume, phonon bands and density of states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ramify.report.svg import INK, PALETTE, PAPER, RULE, STYLE

Array = NDArray[np.float64]


def save_energy_volume(
    path: Path, volume: Array, energy: Array, curve: tuple[Array, Array], minimum: tuple[float, float]
) -> None:
    """Calculated points, the fitted equation of state and its minimum.

    Args:
        path: image to write; its suffix sets the format, e.g. `.svg`.
        volume, energy: (P,) Å³ and eV, of the structure.
        curve: volumes and energies of the fit.
        minimum: volume and energy where the fit has its minimum.
    """
    with rc_context(STYLE):  # type: ignore[arg-type]  # as in svg.py
        figure = Figure(figsize=(5.0, 3.6), layout="constrained", facecolor=PAPER)
        axes = figure.add_subplot()
        axes.plot(*curve, color=PALETTE[0])
        axes.plot(volume, energy, "o", color=INK, markersize=4)
        axes.axvline(minimum[0], color=PALETTE[1], linewidth=1.0)
        axes.set_xlabel("volume, Å³")
        axes.set_ylabel("energy, eV")
        figure.savefig(path)


def save_bands(
    path: Path, at: Array, frequencies: Array, ticks: Sequence[tuple[float, str]], dos: tuple[Array, Array]
) -> None:
    """Phonon bands along a path, and the density of states beside them.

    Args:
        path: image to write; its suffix sets the format, e.g. `.svg`.
        at: (Q,) position along the path.
        frequencies: (Q, bands) THz; imaginary ones are negative.
        ticks: position and name of the special points.
        dos: frequencies in THz, and states per THz and primitive cell.
    """
    with rc_context(STYLE):  # type: ignore[arg-type]  # as in svg.py
        figure = Figure(figsize=(6.4, 3.8), layout="constrained", facecolor=PAPER)
        bands, density = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        bands.plot(at, frequencies, color=PALETTE[0], linewidth=1.2)
        for place, _ in ticks:
            bands.axvline(place, color=RULE, linewidth=0.8, zorder=0)
        bands.grid(visible=False)
        bands.axhline(0.0, color=INK, linewidth=0.6)
        bands.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
        bands.set_xlim(float(at[0]), float(at[-1]))
        bands.set_ylabel("frequency, THz (negative: imaginary)")
        density.plot(dos[1], dos[0], color=PALETTE[0], linewidth=1.2)
        density.set_xlabel("states per THz and cell")
        density.set_xlim(left=0.0)
        figure.savefig(path)
