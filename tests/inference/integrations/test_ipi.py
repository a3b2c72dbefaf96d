"""i-PI driven by a branch: its energies and virials are those of the model, with beads too; failures stop both."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ramify.errors import RamifyError
from ramify.inference.integrations.ase import Calculator
from ramify.inference.integrations.ipi import drive
from ramify.inference.model import Model
from tests.docs.pages import blocks, verb

pytest.importorskip("ipi", reason="needs the package ipi")

pytestmark = pytest.mark.filterwarnings("ignore:extrapolation:ramify.errors.RamifyWarning")

PAGE = Path(__file__).parents[3] / "docs/simulations.md"


@pytest.fixture
def address() -> str:
    """A socket name of this test alone."""
    return f"ramify-{uuid4().hex[:12]}"


def serve(folder: Path, atoms: Atoms, address: str, beads: int) -> "subprocess.Popen[bytes]":
    """i-PI with these atoms and the input of the documentation."""
    write(folder / "start.extxyz", atoms)
    text = next(block.text for block in blocks(PAGE) if block.language == "xml")
    for said, meant in (("<address> water <", f"<address> {address} <"), ("nbeads='4'", f"nbeads='{beads}'")):
        assert said in text
        text = text.replace(said, meant)
    (folder / "input.xml").write_text(text)
    program = Path(sys.executable).parent / "i-pi"
    return subprocess.Popen([program, "input.xml"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("beads", "by"),
    [(1, "function"), (3, "verb"), (2, "metatomic"), pytest.param(1, "metatomic", marks=pytest.mark.slow)],
)
def test_energies_and_virials_of_every_step(
    exact: Model, runs: Path, crystals: list[Atoms], tmp_path: Path, address: str, beads: int, by: str
) -> None:
    """A sheared crystal, whose cell i-PI keeps triangular; by the drivers of Ramify, and by i-PI's of metatomic."""
    atoms = crystals[1]
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
    server = serve(tmp_path, atoms, address, beads)
    if by == "function":
        assert drive(atoms, Calculator(exact, "mptrj"), unix=address) == 4 * beads
    elif by == "metatomic":
        pytest.importorskip("metatomic.torch", reason="needs the package metatomic-torch")
        verb(f"ramify export {runs / 'conservative'} --format metatomic --branch mptrj --out {tmp_path / 'mptrj.pt'}")
        options = f"template={tmp_path / 'start.extxyz'},model={tmp_path / 'mptrj.pt'}"
        program = Path(sys.executable).parent / "i-pi-driver-py"
        subprocess.run([program, "-m", "metatomic", "-o", options, "-u", "-a", address], check=True, timeout=200)
    else:
        options = f"--model {runs / 'conservative'} --branch mptrj --precision fp64 --unix {address}"
        verb(f"ramify ipi {tmp_path / 'start.extxyz'} {options}")
    assert server.wait(60) == 0
    rows = np.atleast_2d(np.loadtxt(tmp_path / "ipi.out"))
    frames = [read(path, ":") for path in sorted(tmp_path.glob("ipi.pos_*.extxyz"))]
    assert (rows.shape, len(frames), {len(images) for images in frames}) == ((4, 11), beads, {4})
    for step, row in enumerate(rows):
        found = exact.predict([images[step] for images in frames], "mptrj")
        assert row[2] == pytest.approx(found.energy.mean(), abs=1e-4)  # files hold eight digits
        virial = -found.stress.sum(axis=0)  # by volume, of the ring polymer
        np.testing.assert_allclose(row[5:], virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]], atol=1e-5)
    assert np.ptp(rows[:, 6]) > 0


def test_a_failed_prediction_stops_both(stiff: Model, tmp_path: Path, address: str) -> None:
    atoms = Atoms("H2", [[5, 5, 5], [5, 5, 5.01]], cell=[10.0] * 3)
    server = serve(tmp_path, atoms, address, 1)
    with pytest.raises(RamifyError, match="two atoms on one spot"):
        drive(atoms, Calculator(stiff, "qm7x"), unix=address)
    server.wait(60)
    assert not list(tmp_path.glob("ipi.pos*")) or len(read(next(tmp_path.glob("ipi.pos*")), ":")) <= 1


def test_what_cannot_be_driven(direct: Model, stiff: Model, address: str) -> None:
    with pytest.raises(RamifyError, match="branch 'bare' predicts no forces"):
        drive(molecule("H2O"), Calculator(direct, "bare"), unix=address)
    with pytest.raises(RamifyError, match=f"not reachable at Unix socket /tmp/ipi_{address} after 0 s"):
        drive(molecule("H2O"), Calculator(stiff, "qm7x"), unix=address, wait=0)
