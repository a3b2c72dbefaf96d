"""Exports: whole, small, without their data; damaged and newer ones are refused; old versions load for good."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from safetensors.numpy import load_file

from ramify.errors import RamifyError
from ramify.evaluate.evaluate import Evaluator
from ramify.files import content_sha256
from ramify.inference.export.exported import VERSION, write_export
from ramify.inference.model import Model, load, read_saved
from ramify.inspect import describe
from tests.small import files_of, flip_byte

SAMPLES = Path(__file__).parent / "exports"
"""Exports of every version there has been, with what they predicted when they were written. Never rewritten."""


@pytest.fixture
def export(runs: Path, tmp_path: Path) -> Path:
    """An export of the model with conservative forces."""
    return write_export(read_saved(runs / "conservative"), tmp_path / "model")


def test_what_it_holds(export: Path, conservative: Model) -> None:
    """Weights, JSON and a card, nothing that could run."""
    assert sorted(str(p.relative_to(export)) for p in export.rglob("*") if p.is_file()) == [
        "README.md",
        "branches/mixed.safetensors",
        "branches/mptrj.safetensors",
        "branches/qm7x.safetensors",
        "encoder.safetensors",
        "manifest.json",
    ]
    assert "norm.weight" in load_file(export / "encoder.safetensors")
    manifest = json.loads((export / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("ramify-model", VERSION)
    assert manifest["recipe"]["train"]["max_steps"] == 40
    assert manifest["branches"] == {"qm7x": ["qm7x"], "mptrj": ["mptrj"], "mixed": ["ani1x", "bare"]}


def test_no_folder_of_the_training_machine_is_told(export: Path, runs: Path) -> None:
    recipe = json.loads((export / "manifest.json").read_text())["recipe"]
    assert (recipe["stores"], recipe["datasets"]["mptrj"]["path"]) == ("stores", "MPtrj_mini.json")
    for file in ("manifest.json", "README.md"):
        text = (export / file).read_text()
        assert str(runs) not in text
        assert str(Path.home()) not in text


def test_the_hash_is_that_of_the_datas_manifest(export: Path, runs: Path) -> None:
    datasets = json.loads((export / "manifest.json").read_text())["datasets"]
    for name, kept in datasets.items():
        assert kept["manifest_sha256"] == content_sha256(
            json.loads((runs / "conservative/data.json").read_text())[name]
        )


def test_it_needs_nothing_else(runs: Path, conservative: Model, molecules: list[Atoms], tmp_path: Path) -> None:
    """Loaded where there are no stores and no run; an export of an export is the same model."""
    first = write_export(read_saved(runs / "conservative"), tmp_path / "a/model")
    second = write_export(read_saved(first), tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    found, expected = load(second).predict(molecules, "qm7x"), conservative.predict(molecules, "qm7x")
    np.testing.assert_array_equal(found.energy, expected.energy)
    np.testing.assert_array_equal(found.forces_of_atoms, expected.forces_of_atoms)


def test_one_branch(runs: Path, conservative: Model, crystals: list[Atoms], tmp_path: Path) -> None:
    export = write_export(read_saved(runs / "conservative"), tmp_path / "model", ["mptrj"])
    assert [p.name for p in (export / "branches").iterdir()] == ["mptrj.safetensors"]
    np.testing.assert_array_equal(load(export).predict(crystals).energy, conservative.predict(crystals, "mptrj").energy)
    card = (export / "README.md").read_text()
    assert "# mptrj" in card
    with pytest.raises(RamifyError, match="has no branch 'mptr', did you mean 'mptrj'"):
        write_export(read_saved(runs / "conservative"), tmp_path / "other", ["mptr"])
    assert not (tmp_path / "other").exists()


def test_the_card(runs: Path, tmp_path: Path) -> None:
    """Model, data, levels of theory and errors; without an evaluation it states that there is none."""
    shutil.copytree(runs / "direct", tmp_path / "run", symlinks=True)
    before = (write_export(read_saved(tmp_path / "run"), tmp_path / "before") / "README.md").read_text()
    assert "Not evaluated: run `ramify evaluate RUN` before `ramify export RUN` to include the errors here." in before
    result = Evaluator(tmp_path / "run").evaluate()
    after = (write_export(read_saved(tmp_path / "run"), tmp_path / "after") / "README.md").read_text()
    own = next(r for r in result["rows"] if r["branch"] == r["dataset"] == "ani1x")
    row = re.search(r"^\| ani1x \| ani1x \| (\d+) \| (\S+) \| \S+ \| (\S+) \|", after, re.MULTILINE)
    assert row
    assert int(row[1]) == own["structures"]
    assert float(row[2]) == pytest.approx(own["energy_mae"], abs=6e-5)
    assert float(row[3]) == pytest.approx(own["forces_mae"], abs=6e-5)
    assert re.search(r"^\| bare \| bare \| \d+ \| [\d.]+ \| [\d.]+ \| — \| — \| — \| — \|$", after, re.MULTILINE)
    for part in ("ramify.load", "H C N O", "eV/Å", "recipe", "manifest_sha256"[:8], "predicted by a separate head"):
        assert part in after
    kept = load(tmp_path / "after").saved.evaluation
    assert kept is not None
    assert {r["branch"] for r in kept["rows"]} == {"ani1x", "mptrj", "bare"}


def test_an_evaluation_of_another_step_is_left_out(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "direct", tmp_path / "run", symlinks=True)
    Evaluator(tmp_path / "run").evaluate()
    path = tmp_path / "run/evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 3}))
    assert read_saved(tmp_path / "run").evaluation is None


def test_nothing_is_overwritten(export: Path, runs: Path) -> None:
    before = files_of(export)
    with pytest.raises(RamifyError, match="model exists already; an export is never overwritten"):
        write_export(read_saved(runs / "direct"), export)
    assert files_of(export) == before


@pytest.mark.parametrize("name", ["encoder.safetensors", "branches/mptrj.safetensors", "manifest.json"])
def test_damage_is_found(export: Path, name: str) -> None:
    flip_byte(export / name)
    with pytest.raises(RamifyError, match=rf"{name} is damaged"):
        load(export)


def test_a_missing_file_is_named(export: Path) -> None:
    (export / "branches/mptrj.safetensors").unlink()
    with pytest.raises(RamifyError, match=r"branches/mptrj\.safetensors is missing"):
        load(export)


def rewrite(export: Path, **changes: object) -> None:
    """Changes the manifest, checksum included."""
    content = json.loads((export / "manifest.json").read_text()) | changes
    content.pop("checksum")
    (export / "manifest.json").write_text(json.dumps(content | {"checksum": content_sha256(content)}))


def test_a_newer_version_is_refused(export: Path) -> None:
    rewrite(export, version=VERSION + 1, exported_by="7.0.0", something="new")
    with pytest.raises(RamifyError, match=rf"has format version {VERSION + 1}, this program reads up to {VERSION}\n"):
        load(export)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "", "-x"])
def test_a_branchs_name_cannot_lead_elsewhere(export: Path, name: str) -> None:
    rewrite(export, branches={name: ["mptrj"]})
    with pytest.raises(RamifyError, match=rf"branches.*'{re.escape(name)}' cannot be a name"):
        load(export)


def test_unknown_keys_and_options_are_refused(export: Path) -> None:
    content = json.loads((export / "manifest.json").read_text())
    rewrite(export, model=content["model"] | {"encoder": content["model"]["encoder"] | {"kind": "transformer"}})
    with pytest.raises(RamifyError, match=r"'transformer' is unknown.*accepted: egnn"):
        load(export)
    rewrite(export, model=content["model"] | {"encoder": content["model"]["encoder"] | {"width": 9}})
    with pytest.raises(RamifyError, match=r"the weights in .* do not fit the model they belong to"):
        load(export)
    rewrite(export, model=content["model"], extra=1)
    with pytest.raises(RamifyError, match=r"manifest\.json is damaged at 'extra': Extra inputs"):
        load(export)


def test_inspect(export: Path) -> None:
    title, facts = describe(export, verify=False)
    assert title == f"model {export}"
    assert facts["branches"] == {"qm7x": ["qm7x"], "mptrj": ["mptrj"], "mixed": ["ani1x", "bare"]}
    assert set(facts["parameters"]) == {"encoder", "qm7x", "mptrj", "mixed"}
    assert facts["references"]["bare"]


@pytest.mark.parametrize("sample", sorted(p.name for p in SAMPLES.iterdir()))
def test_samples_of_every_version_load_for_good(sample: str) -> None:
    """Exports written by the version in their name still give the predictions of that version."""
    model = load(SAMPLES / sample)
    expected = json.loads((SAMPLES / sample / "expected.json").read_text())
    images = {"water": molecule("H2O"), "ethanol": molecule("CH3CH2OH"), "silicon": bulk("Si")}
    assert set(expected) == set(model.branches)
    for branch, structures in expected.items():
        dataset = next(iter(model.branches[branch].datasets))
        for name, said in structures.items():
            found = model.predict(images[name], branch, dataset=dataset)
            assert found.energy == pytest.approx(said["energy"], abs=1e-5)
            for key in ("forces", "stress"):
                if said[key] is None:
                    assert getattr(found, key) is None
                else:
                    np.testing.assert_allclose(getattr(found, key), said[key], atol=1e-5)


def test_there_is_a_sample_of_todays_version() -> None:
    versions = {json.loads((p / "manifest.json").read_text())["version"] for p in SAMPLES.iterdir()}
    assert versions == set(range(1, VERSION + 1)), "write one with tools/export_sample, and leave the others alone"
