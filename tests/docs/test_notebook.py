"""The notebook of the whole way runs, shows tables and no warnings, and is kept without outputs."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook/whole_way.ipynb"
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def test_it_is_kept_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of this Python, whichever kernels are installed."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    manager = AsyncKernelManager()
    manager._kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, km=manager, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    for name, kept in (
        ("Run.open", "best validation metric"),
        ("results = Results", "crystals"),
        ("Store.open", "val"),
    ):
        (outputs,) = [outputs for source, outputs in cells.items() if name in source]
        assert kept in outputs[-1].data["text/html"]
    said = {source: "".join(_text(output) for output in outputs) for source, outputs in cells.items()}
    assert "Validation MAE" in said["%run -m ramify train own.yaml --run run"]
    assert "Traceback" not in "".join(said.values())
    assert not any("warn" in text.lower() and "ipywidgets" in text for text in said.values())
    assert "CH4" in said[next(source for source in cells if "get_chemical_formula" in source)]
    assert (tmp_path / "run/report.html").stat().st_size > 100_000


def _text(output: "nbformat.NotebookNode") -> str:
    return output.get("text", "") or output.get("data", {}).get("text/plain", "")
