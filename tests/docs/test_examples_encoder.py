"""An encoder in a package of its own: found by its entry point, trained, exported, loaded; and errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ase.build import molecule

from ramify.errors import RamifyError
from ramify.inference.export.exported import write_export
from ramify.inference.model import load, read_saved
from ramify.recipe import encoder, encoder_kinds, parse_recipe
from tests.small import ENTRIES, make_recipe, prepare_stores, train

EXAMPLE = Path(__file__).parents[2] / "examples/encoder"


def installed(folder: Path, entry: str, *, name: str = "ramify-pair-sums") -> Path:
    """An installed package as pip leaves it: metadata with the entry point."""
    metadata = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[ramify.encoders]\n{entry}\n")
    return folder


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Entry points are looked for again; modules of the example are forgotten at the end."""
    encoder.clear_cache()
    yield monkeypatch
    sys.modules.pop("pair_sums", None)
    encoder.clear_cache()


def recipe_of(kind: str) -> object:
    entry = {"format": "extxyz", "path": "a.xyz"}
    return parse_recipe({"datasets": {"a": entry}, "model": {"encoder": {"kind": kind}}}, "test")


def test_it_trains_exports_and_loads(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (declared,) = [line for line in (EXAMPLE / "pyproject.toml").read_text().splitlines() if "PairSums" in line]
    fresh.syspath_prepend(str(EXAMPLE))
    fresh.syspath_prepend(str(installed(tmp_path / "site", declared.replace('"', ""))))
    assert "pair_sums" in encoder_kinds()
    prepare_stores(tmp_path)
    options = {"kind": "pair_sums", "layers": 2, "width": 8, "vector_channels": 4, "cutoff": 4.0}
    recipe = make_recipe(tmp_path, {"ani1x": ENTRIES["ani1x"]}, model__encoder=options, train__max_steps=3)
    train(recipe, tmp_path / "run")
    model = load(write_export(read_saved(tmp_path / "run"), tmp_path / "export"))
    assert type(model.network.encoder).__name__ == "PairSums"
    atoms = molecule("CH3OH")
    assert model.predict(atoms, "ani1x").energy == load(tmp_path / "run").predict(atoms, "ani1x").energy
    with pytest.raises(RamifyError, match=r"model\.encoder\.radail: unknown key.*'radial'.*vector_channels"):
        make_recipe(tmp_path, {"ani1x": ENTRIES["ani1x"]}, model__encoder=options | {"radail": 3})


def test_without_the_package_the_model_says_what_is_missing(fresh: pytest.MonkeyPatch) -> None:
    with pytest.raises(RamifyError, match=r"model\.encoder\.kind: 'pair_sums' is unknown; accepted: egnn"):
        recipe_of("pair_sums")


def test_what_cannot_be_imported_is_named(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.syspath_prepend(str(installed(tmp_path, "broken = no_such_module:Encoder", name="broken-package")))
    with pytest.raises(RamifyError, match=r"'broken' cannot be imported from no_such_module:Encoder.*broken-package"):
        recipe_of("broken")
    assert recipe_of("egnn")  # others go on


def test_what_is_no_encoder_is_named(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.syspath_prepend(str(installed(tmp_path, "odd = pathlib:Path", name="odd-package")))
    with pytest.raises(RamifyError, match=r"'odd' is pathlib:Path of the package odd-package.*Options"):
        recipe_of("odd")


def test_two_packages_with_one_kind_are_refused(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.syspath_prepend(str(installed(tmp_path, "schnet = pair_sums:PairSums", name="other-package")))
    with pytest.raises(RamifyError, match=r"'schnet' is defined more than once, by ramify, other-package"):
        recipe_of("schnet")


@pytest.mark.slow
def test_it_passes_the_suite() -> None:
    """As its authors would run it."""
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not compiled and not cost", "."]
    done = subprocess.run(
        command, cwd=EXAMPLE, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert done.stdout.count(".") > 25
