"""The commands for original files and stores: look, prepare, convert."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ramify.cli.messages import console, print_json, say_written
from ramify.cli.options import MAKING, Json, Overrides, RecipeArgument
from ramify.cli.progress import Steps
from ramify.cli.tables import print_look, print_prepared
from ramify.errors import RamifyError

verbs = typer.Typer()
FormOption = Literal["mapped", "adios"]


@verbs.command(rich_help_panel=MAKING)
def look(
    file: Annotated[Path, typer.Argument(help="An original file of a dataset, or a folder of a DeePMD system.")],
    form: Annotated[
        str | None, typer.Option("--format", help="Its format; by default recognised from the file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Summarise an original file: format, keys, a sample of its structures, possible problems, a recipe to copy."""
    from ramify.sources.look import look as look_at

    found = look_at(file, form)
    if as_json:
        print_json(found.as_data())
    else:
        print_look(console, found.as_data())


@verbs.command(rich_help_panel=MAKING)
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace existing stores that were prepared from other files or options.")
    ] = False,
    form: Annotated[
        FormOption, typer.Option("--store", help="Form of the stores: one file per column, or one ADIOS2 file.")
    ] = "mapped",
    workers: Annotated[
        str, typer.Option(help="Number of reading processes; mpi: those started by mpiexec or srun.", metavar="N|mpi")
    ] = "1",
    as_json: Json = False,
) -> None:
    """Convert original files to stores: units, quality gates, reference energies, splits.

    Prints the numbers of dropped structures, with the reasons.
    """
    from ramify.batches.conditions import require_states
    from ramify.prepare.prepare import prepare_dataset
    from ramify.prepare.workers import Served, start_workers
    from ramify.recipe import load_recipe
    from ramify.store.store import Store

    resolved, manifests = load_recipe(recipe, overrides or []), {}
    try:
        with start_workers(_workers(workers)) as reading:
            for name, options in resolved.datasets.items():
                with Steps(console, f"prepare {name}", quiet=as_json) as steps:
                    manifests[name] = prepare_dataset(
                        name, options, Path(resolved.stores), base=Path.cwd(), force=force, form=form,
                        workers=reading, progress=steps.counted,
                    )  # fmt: skip
                if resolved.model.conditions:
                    require_states(resolved.model.conditions, Store.open(Path(resolved.stores) / name, later=True))
    except Served:  # rank zero has prepared the store and prints the result
        return
    if as_json:
        print_json({name: manifest.to_json() for name, manifest in manifests.items()})
    else:
        print_prepared(console, manifests)


@verbs.command(rich_help_panel=MAKING)
def convert(
    store: Annotated[Path, typer.Argument(help="Directory of a prepared dataset.")],
    to: Annotated[FormOption, typer.Option(help="New form: one file per column, or one ADIOS2 file.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the new store; by default it replaces the old one.")
    ] = None,
) -> None:
    """Convert a store to its other form. All values stay bit-identical; every checksum is compared."""
    from ramify.store.convert import convert_store

    with Steps(console, f"convert {store.name}", "MB") as steps:
        written = convert_store(store, to, out, progress=lambda size: steps.counted(size / 1e6))
    say_written("store", written)


def _workers(text: str) -> int | Literal["mpi"]:
    """The value of `--workers`."""
    if text == "mpi":
        return "mpi"
    if not text.isdecimal() or not int(text):
        raise RamifyError(f"--workers {text}: accepted are a whole number above 0, and mpi")
    return int(text)
