"""Structures of the report: which a page contains, their pictures, the file of the largest errors, the viewer."""

import base64
import gzip
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read

from ramify.evaluate.results import Results, StoredPredictions
from ramify.report import plots
from ramify.report.explore import embed, pictures
from ramify.report.explore.worst import WORST, download, largest, worst
from ramify.report.report import write_report


@pytest.fixture(scope="module")
def found(run: Path) -> StoredPredictions:
    stored = Results.open(run).predictions("qm7x")
    assert stored is not None
    return stored


def test_largest_errors_are_those_of_a_plain_loop(found: StoredPredictions) -> None:
    by_structure, start = [], 0
    for structure, size in enumerate(found.n_atoms):
        error = found.predicted["forces"][start : start + size] - found.true["forces"][start : start + size]
        norms = np.sqrt((error.astype(float) ** 2).sum(1))
        by_structure.append((-norms.max(), structure, start + int(norms.argmax())))
        start += size
    assert largest(found, "forces") == [(s, row) for _, s, row in sorted(by_structure)[:WORST]]
    energies = np.abs(found.predicted["energy"] - found.true["energy"])
    assert [s for s, _ in largest(found, "energy")] == list(np.argsort(-energies)[:WORST])


def test_a_structure_without_a_label_is_never_among_the_largest_errors(found: StoredPredictions) -> None:
    true = {name: values.copy() for name, values in found.true.items()}
    true["energy"][3:] = np.nan
    assert sorted(s for s, _ in largest(replace(found, true=true), "energy")) == [0, 1, 2]


def test_a_page_has_all_structures_of_a_small_split_and_the_largest_errors_of_a_large_one(
    found: StoredPredictions,
) -> None:
    total = int(found.n_atoms.sum())
    np.testing.assert_array_equal(embed.choose(found, total), np.arange(len(found.n_atoms)))
    chosen = embed.choose(found, total // 2)
    assert total / 4 < found.n_atoms[chosen].sum() <= total / 2
    errors = {s for quantity in ("energy", "forces") for s, _ in largest(found, quantity)}
    assert errors <= set(chosen.tolist())
    assert list(chosen) == sorted(set(chosen))
    rest = sorted(set(chosen.tolist()) - errors)
    assert rest[0] < len(found.n_atoms) / 5, "from the whole split, not from its end"
    assert rest[-1] > 4 * len(found.n_atoms) / 5


def test_the_page_has_labels_and_predictions_of_its_structures(run: Path, found: StoredPredictions) -> None:
    packed = embed.compressed(embed.payload({"qm7x": found}))
    own = json.loads(gzip.decompress(base64.b64decode(packed)))["qm7x"]
    assert own["names"] == found.names.tolist()
    np.testing.assert_allclose(own["labels"]["energy"]["true"], found.true["energy"], rtol=1e-5)
    np.testing.assert_allclose(own["labels"]["forces"]["predicted"], found.predicted["forces"].ravel(), atol=1e-4)
    assert found.geometry is not None
    np.testing.assert_allclose(own["positions"], found.geometry.positions.ravel(), atol=6e-4)
    assert [own["group_names"][g] for g in own["groups"]] == found.geometry.groups.tolist()
    assert own["cells"] == [None] * len(found.n_atoms)
    assert embed.payload({"qm7x": replace(found, geometry=None)}) == {}


def test_the_downloaded_file_has_labels_and_predictions(found: StoredPredictions) -> None:
    listed = worst(found)
    address = download(found, listed)
    assert address is not None
    text = base64.b64decode(address.removeprefix("data:text/plain;base64,")).decode()
    frames = read(io.StringIO(text), index=":", format="extxyz")
    assert [a.info["name"] for a in frames] == list(dict.fromkeys(r.name for entry in listed for r in entry.rows))
    at = listed[0].rows[0].index
    first = frames[0]
    error = first.get_potential_energy() - first.info["REF_energy"]
    assert abs(error) / len(first) == pytest.approx(listed[0].rows[0].error, rel=1e-6)
    start = int(found.n_atoms[:at].sum())
    np.testing.assert_allclose(first.get_forces(), found.predicted["forces"][start : start + len(first)], atol=1e-6)
    np.testing.assert_allclose(first.arrays["REF_forces"], found.true["forces"][start : start + len(first)], atol=1e-6)
    assert download(replace(found, geometry=None), listed) is None


def test_a_picture_has_the_atoms_bonds_and_cell() -> None:
    water = molecule("H2O")
    assert sorted(pictures.bonds(water.numbers, water.positions)) == [(0, 1), (0, 2)]
    drawn = pictures.picture(water.numbers, water.positions, np.zeros((3, 3)))
    assert drawn.alt == "Structure of H2O"
    assert (drawn.svg.count("<circle"), drawn.svg.count("<path")) == (3, 2)
    boxed = pictures.picture(water.numbers, water.positions, 5 * np.eye(3))
    assert boxed.svg.count("<path") == 2 + 12
    single = pictures.picture(np.array([2]), np.zeros((1, 3)), np.zeros((3, 3)))
    assert single.svg.count("<circle") == 1
    edges = pictures.cell_edges(np.array([[2.0, 0, 0], [1, 3, 0], [0, 0, 5]]))
    lengths = sorted(np.linalg.norm(edges[:, 1] - edges[:, 0], axis=1))
    np.testing.assert_allclose(lengths, sorted(4 * [2.0, np.sqrt(10), 5.0]))
    assert len({tuple(corner) for corner in edges.reshape(-1, 3)}) == 8


def test_a_picture_is_no_mirror_image() -> None:
    """The depth order of a chiral molecule, seen in the plane of the picture, has the handedness of the molecule."""
    rng = np.random.default_rng(5)
    for _ in range(8):
        points = rng.normal(size=(4, 3)) * [3, 2, 1]
        axes = pictures._axes(points)
        assert np.linalg.det(axes) == pytest.approx(1)
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)


def test_the_viewer_is_the_published_file_with_its_licence() -> None:
    """The checksum is that of build/3Dmol-min.js in 3dmol-2.5.5.tgz of the npm registry."""
    folder = files("ramify.report.explore").joinpath("viewer")
    digest = hashlib.sha256(folder.joinpath(embed.VIEWER).read_bytes()).hexdigest()
    assert digest == "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
    assert "BSD-3-Clause" in folder.joinpath("LICENSE").read_text()


def test_old_predictions_without_structures_still_have_a_report(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", only=("ani1x",))
    with np.load(path / "predictions/ani1x.npz") as file:
        kept = {k: v for k, v in file.items() if k not in ("positions", "cell", "pbc", "total_energy", "groups")}
    np.savez(path / "predictions/ani1x.npz", **kept)
    for name in ("data.json", "metrics.jsonl"):
        (path / name).unlink()
    html = write_report(path).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "Largest errors in ani1x" in html
    assert "Download these" not in html


def test_corners_of_a_parity_plot_are_where_its_frame_says(run: Path) -> None:
    """The frame, against the ends of the diagonal in the drawing."""
    values = np.array([0.0, 1.0, 2.0])
    drawing = plots.parity(values, values, quantity="energy", color="#0072b2", dataset="d")
    assert drawing is not None
    left, top, right, bottom = map(float, re.search(r'data-frame="([^"]*)"', drawing.svg)[1].split())
    low, high = map(float, re.search(r'data-limits="([^"]*)"', drawing.svg)[1].split())
    assert (low, high) == (pytest.approx(-0.08), pytest.approx(2.08))
    corners = {(left, bottom), (right, top)}
    lines = re.findall(r'd="M ([\d.]+) ([\d.]+) \n?L ([\d.]+) ([\d.]+)', drawing.svg)
    ends = [((float(a), float(b)), (float(c), float(d))) for a, b, c, d in lines]
    assert any(
        all(np.allclose(p, q, atol=0.01) for p, q in zip(sorted(pair), sorted(corners), strict=True)) for pair in ends
    ), list(itertools.islice(ends, 20))
