"""Loading a run, a checkpoint and an export gives the same model; messages of errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

import ramify
from ramify.checkpoint.checkpoint import open_checkpoint
from ramify.errors import RamifyError
from ramify.inference.export.exported import write_export
from ramify.inference.model import Model, load, read_saved


def test_the_package_offers_what_users_need() -> None:
    assert ramify.load is load
    assert ramify.Model is Model
    assert {"load", "Model", "Calculator", "TorchSimModel"} <= set(dir(ramify))
    with pytest.raises(AttributeError, match="module 'ramify' has no attribute 'laod'"):
        ramify.laod  # noqa: B018


def test_torch_is_loaded_only_when_it_is_needed() -> None:
    code = "import ramify.cli, sys; assert 'torch' not in sys.modules; ramify.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_branches_say_what_they_know(conservative: Model, direct: Model, runs: Path) -> None:
    assert list(conservative.branches) == ["qm7x", "mptrj", "mixed"]
    assert list(direct.branches) == ["ani1x", "mptrj", "bare"]
    assert [direct.branches[name].forces for name in direct.branches] == ["direct", "direct", None]
    assert {b.forces for b in conservative.branches.values()} == {"conservative"}
    assert list(conservative.branches["mixed"].datasets) == ["ani1x", "bare"]
    info = conservative.branches["qm7x"].datasets["qm7x"]
    manifest = json.loads((runs / "stores/qm7x/manifest.json").read_text())
    assert info.elements == ("H", "C", "N", "O", "S", "Cl")
    assert dict(info.references) == manifest["references"]["energies"]
    assert info.min_distance == manifest["statistics"]["min_distance"]
    assert (info.structures, info.atoms) == (288, manifest["splits"]["train"]["atoms"])


def test_a_model_shows_its_branches_in_a_notebook(conservative: Model) -> None:
    shown = conservative._repr_html_()
    for name, info in conservative.branches.items():
        assert f"<td>{name}</td><td>{', '.join(info.datasets)}</td><td>{info.forces or '—'}</td>" in shown


def test_run_checkpoint_and_export_are_one_model(
    conservative: Model, runs: Path, molecules: list[Atoms], tmp_path: Path
) -> None:
    expected = conservative.predict(molecules, "qm7x")
    export = write_export(read_saved(runs / "conservative"), tmp_path / "model")
    for path in (runs / "conservative/checkpoints/best", export):
        found = load(path).predict(molecules, "qm7x")
        np.testing.assert_array_equal(found.energy, expected.energy)
        np.testing.assert_array_equal(found.forces_of_atoms, expected.forces_of_atoms)


def test_the_averaged_weights_are_loaded(conservative: Model, runs: Path) -> None:
    for name, tensor in open_checkpoint(runs / "conservative/checkpoints/best").weights().items():
        assert torch.equal(conservative.network.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in conservative.network.parameters())
    assert not conservative.network.training


def test_precision(runs: Path, conservative: Model, exact: Model, molecules: list[Atoms]) -> None:
    assert (conservative.dtype, exact.dtype) == (torch.float32, torch.float64)
    single, double = conservative.predict(molecules, "qm7x"), exact.predict(molecules, "qm7x")
    assert 0 < abs(single.energy - double.energy).max() < 1e-4
    with pytest.raises(RamifyError, match="precision 'bf16' is unknown\n  fix: give 'fp32' or 'fp64'"):
        load(runs / "conservative", precision="bf16")


def test_a_branch_must_be_named(conservative: Model, molecules: list[Atoms]) -> None:
    with pytest.raises(
        RamifyError, match="the model has 3 branches: qm7x, mptrj, mixed\n  fix: name one: branch='qm7x'"
    ):
        conservative.predict(molecules)
    with pytest.raises(RamifyError, match="the model has no branch 'qm7', did you mean 'qm7x'"):
        conservative.predict(molecules, "qm7")


def test_a_dataset_must_be_named_where_energy_scales_differ(conservative: Model) -> None:
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    with pytest.raises(RamifyError, match="branch 'mixed' has 2 datasets, each with reference energies of its own"):
        conservative.predict(water, "mixed")
    with pytest.raises(RamifyError, match="branch 'mixed' has no dataset 'qm7x'"):
        conservative.predict(water, "mixed", dataset="qm7x")
    found = {name: conservative.predict(water, "mixed", dataset=name) for name in ("ani1x", "bare")}
    np.testing.assert_array_equal(found["ani1x"].forces, found["bare"].forces)
    infos = conservative.branches["mixed"].datasets
    shift = [infos[n].references["O"] + 2 * infos[n].references["H"] for n in ("ani1x", "bare")]
    assert found["ani1x"].energy - found["bare"].energy == pytest.approx(shift[0] - shift[1], abs=1e-9)


def test_a_single_branch_needs_no_name(runs: Path, molecules: list[Atoms], tmp_path: Path) -> None:
    write_export(read_saved(runs / "conservative"), tmp_path / "model", ["qm7x"])
    model = load(tmp_path / "model")
    assert list(model.branches) == ["qm7x"]
    assert model.predict(molecules[0]).energy == model.predict(molecules[0], "qm7x").energy


def test_what_is_no_model(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="nowhere does not exist\n  fix: give a run directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(RamifyError, match="holds no model\n  fix: give a run directory"):
        load(tmp_path)
    with pytest.raises(RamifyError, match=r"manifest\.json describes something else"):
        load(runs / "stores/qm7x")
    with pytest.raises(RamifyError, match="has no checkpoint 'bset'\n  fix: name one of: best, latest, step-"):
        load(runs / "direct", checkpoint="bset")
    with pytest.raises(RamifyError, match=r"device 'cuda:99' cannot be used"):
        load(runs / "direct", device="cuda:99")
