"""The commands that compute properties of crystals with a trained model: eos, phonons."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ramify.cli.messages import print_json, say_written
from ramify.cli.options import USING, FormatOption, Json
from ramify.cli.use.options import BranchOptions, FileArgument, IndexOption, warnings_shown, with_options
from ramify.errors import RamifyError

FolderOption = Annotated[Path, typer.Option("--out", "-o", help="Directory to create, with data and a picture.")]

verbs = typer.Typer()


@dataclass(frozen=True)
class CrystalOptions(BranchOptions):
    """The same options, in the precision that derivatives need."""

    precision: Annotated[str, typer.Option(help="fp32 or fp64; derivatives need fp64.")] = "fp64"


@verbs.command(rich_help_panel=USING)
@with_options
def eos(
    file: FileArgument,
    out: FolderOption,
    options: CrystalOptions,
    form: FormatOption = None,
    index: IndexOption = None,
    strain: Annotated[float, typer.Option(help="Largest relative change of the lattice constants.")] = 0.03,
    points: Annotated[int, typer.Option(help="Number of volumes.")] = 9,
    equation: Annotated[Literal["birchmurnaghan", "vinet", "murnaghan"], typer.Option(help="Equation.")] = (
        "birchmurnaghan"
    ),
    as_json: Json = False,
) -> None:
    """Fit an equation of state of a crystal: equilibrium volume and bulk modulus, with a picture."""
    from ramify.files import whole_folder, write_json
    from ramify.inference.jobs.eos import equation_of_state
    from ramify.inference.jobs.frames import one_frame

    _must_be_new(out)
    atoms = one_frame(file, index, form)
    calculator = options.calculator()
    with warnings_shown():
        found = equation_of_state(atoms, calculator, strain=strain, points=points, equation=equation)
    with whole_folder(out) as folder:
        write_json(folder / "eos.json", found.to_dict())
        found.draw(folder / "eos.svg")
    if as_json:
        print_json(found.to_dict())
        return
    text = f"volume {found.volume:.4f} Å³, energy {found.energy:.6f} eV, bulk modulus {found.bulk_modulus:.2f} GPa"
    say_written(text, out)


@verbs.command(rich_help_panel=USING)
@with_options
def phonons(
    file: FileArgument,
    out: FolderOption,
    options: CrystalOptions,
    form: FormatOption = None,
    index: IndexOption = None,
    supercell: Annotated[
        tuple[int, int, int], typer.Option(help="Repetitions of the cell along its three vectors.")
    ] = (2, 2, 2),
    distance: Annotated[float, typer.Option(help="Displacement of an atom in Å.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Compute the phonons of a relaxed crystal with phonopy: bands, density of states, force constants, a picture."""
    from ramify.files import whole_folder, write_json
    from ramify.inference.jobs.frames import one_frame
    from ramify.inference.jobs.phonons import phonons as compute

    _must_be_new(out)
    atoms = one_frame(file, index, form)
    calculator = options.calculator()
    with warnings_shown():
        found = compute(atoms, calculator, supercell=supercell, distance=distance)
    with whole_folder(out) as folder:
        write_json(folder / "phonons.json", found.to_dict())
        found.phonopy.save(folder / "phonopy_params.yaml", settings={"force_constants": True})
        found.draw(folder / "phonons.svg")
    if as_json:
        print_json(found.to_dict())
        return
    low, high = float(found.frequencies.min()), float(found.frequencies.max())
    imaginary = " (negative: imaginary, the structure is not stable)" if low < -0.1 else ""
    say_written(f"frequencies from {low:.3f} to {high:.3f} THz{imaginary}", out)


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise RamifyError(f"{out} exists already", fix="choose another --out, or move it away")
