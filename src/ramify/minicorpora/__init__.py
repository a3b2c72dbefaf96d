"""Five small first-principles corpora in the file formats of ANI-1x, QM7-X, Transition1x, MPtrj and Alexandria.

They are calculations of this project, not excerpts. The README.md next to each file describes its content and its
calculation; the scripts are in tools/minicorpora of the source tree.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Folder of the corpora, one folder each."""

FILES = {
    "ani1x_mini": FOLDER / "ani1x_mini" / "ani1x-mini.h5",
    "qm7x_mini": FOLDER / "qm7x_mini" / "1000.hdf5",
    "transition1x_mini": FOLDER / "transition1x_mini" / "Transition1x-mini.h5",
    "mptrj_mini": FOLDER / "mptrj_mini" / "MPtrj_mini.json",
    "alexandria_mini": FOLDER / "alexandria_mini" / "alexandria_mini_000.json.bz2",
}
"""The file of each corpus."""
