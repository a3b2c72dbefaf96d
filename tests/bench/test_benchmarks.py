"""The scripts in `benchmarks/` can be imported with the current package."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_a_script_finds_what_it_imports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs yet: each is guarded by its name."""
    monkeypatch.syspath_prepend(ROOT / path.parent)  # as of a script that Python is given
    assert importlib.import_module(".".join(path.parts)).__doc__
