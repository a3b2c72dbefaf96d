"""The worked example of docs/sources.md runs as it is printed: as one more module of `ramify.sources.formats`."""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ramify.sources.base
import ramify.sources.formats
from ramify.errors import RamifyError

PAGE = Path(__file__).parents[2] / "docs/sources.md"


@pytest.fixture
def dimers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module of the example on the path of the package, as in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/dimers.py").write_text(code, encoding="utf-8")
    package = ramify.sources.formats
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "modules")])
    package.formats.cache_clear()
    yield
    package.formats.cache_clear()
    sys.modules.pop("ramify.sources.formats.dimers", None)


@pytest.mark.usefixtures("dimers")
def test_example_reads(tmp_path: Path, read: Any) -> None:
    curve = {"distances": [0.7, 0.8, 12.0], "energies": [-6.5, -6.7, -2.2], "forces": [[[-9, 0, 0], [9, 0, 0]]] * 3}
    data = {"PBE": {"H-H": curve, "Li-Li": curve | {"energies": [None, -1.0, 0.0]}}, "r2SCAN": {}}
    path = tmp_path / "dimers.json.gz"
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    found, quarantine = read("dimers", path, functional="PBE")
    assert found.energy.tolist() == [-6.5, -6.7, -1.0]
    assert found.numbers.tolist() == [1, 1, 1, 1, 3, 3]
    np.testing.assert_array_equal(found.positions[3], [0.8, 0.0, 0.0])
    assert found.group_names == ("H-H", "Li-Li")
    assert found.name(2) == "dimers.json.gz/Li-Li[1]"
    assert quarantine.counts == {"bond too long (longest)": 2, "label not computed": 1}
    with pytest.raises(RamifyError, match="it has PBE, r2SCAN"):
        read("dimers", path, functional="SCAN")


@pytest.mark.usefixtures("dimers")
@pytest.mark.parametrize(("functional", "count"), [("PBE", 4555), ("r2SCAN", 4558)])
def test_example_reads_real_dimers(shared: Path, read: Any, functional: str, count: int) -> None:
    path = shared / "data/diatomics_pbe_r2scan/diatomics-dft.json.gz"
    found, quarantine = read("dimers", path, functional=functional, longest=100.0)
    assert len(found) == count
    assert quarantine.total == 0
    assert len(set(found.numbers.tolist())) == 92


def test_page_names_every_format_and_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    base = set(ramify.sources.base.DatasetOptions.model_fields)
    for name, found in ramify.sources.formats.formats().items():
        assert f"`{name}`" in page
        for key in set(found.options.model_fields) - base:
            assert f"`{key}`" in page, f"{name}: {key}"
