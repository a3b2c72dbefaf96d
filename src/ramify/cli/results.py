"""The commands that show errors and contents: evaluate, calibrate, tables, report, inspect."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ramify.cli.messages import console, print_json, say, warned
from ramify.cli.options import RESULTS, CheckpointOption, Json, ModelArgument, RunArgument, SplitOption
from ramify.cli.progress import Steps
from ramify.cli.tables import error_bar_table, evaluation_table
from ramify.errors import RamifyError

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.evaluate.evaluate import Subject

verbs = typer.Typer()


@verbs.command(rich_help_panel=RESULTS)
def evaluate(
    run: ModelArgument,
    split: SplitOption = "test",
    checkpoint: CheckpointOption = "best",
    others: Annotated[str | None, typer.Option(help="Evaluate the datasets of this recipe as well.")] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="With --others: also the energy errors on its datasets after their reference energies were fitted "
            "again to the predictions on their training splits.",
        ),
    ] = False,
    stores: Annotated[Path | None, typer.Option(help="Folder of the stores; by default that of the recipe.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Evaluate on this labelled file, read like the files of --dataset.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="With --file: the dataset with the same level of theory.")] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="With --file: another format, by its name in recipes.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or xpu.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure the errors of every branch on every dataset; writes evaluation.json and tables.

    Also runs under torchrun, srun and mpiexec; the errors do not depend on the number of processes. With a checkpoint,
    an export or --file the errors are printed and nothing is written.
    """
    from ramify.evaluate.evaluate import Evaluator, joined_ranks
    from ramify.recipe import load_recipe
    from ramify.report import tables as paper_tables
    from ramify.run.trackers.trackers import track_tables

    if split not in ("train", "val", "test"):
        raise RamifyError(f"--split {split}: accepted are train, val and test")
    if device not in ("auto", "cpu", "cuda", "xpu"):
        raise RamifyError(f"--device {device}: accepted are auto, cpu, cuda and xpu")
    if refit and not others:
        raise RamifyError("--refit is for datasets that the model was not trained on", fix="name them with --others")
    if file is not None:
        _evaluate_file(run, checkpoint, file, dataset, form, device, as_json=as_json)
        return
    if dataset is not None or form is not None:
        raise RamifyError("--dataset and --format define how --file is read", fix="give --file, or leave them out")
    is_run = (run / "recipe.yaml").is_file()
    with joined_ranks(device) as ranks:
        quiet = as_json or not ranks.is_rank_zero
        with Steps(console, f"evaluate {escape(str(run))}", quiet=quiet) as steps:
            result = Evaluator(
                run,
                split,
                checkpoint,
                others=load_recipe(others) if others else None,
                stores=stores,
                subject=None if is_run else lambda: _subject(run, stores),
                device=ranks.device,
                ranks=ranks,
                refit=refit,
                progress=lambda dataset, branch, done: steps.counted(done),
            ).evaluate()
        if not ranks.is_rank_zero:
            return
    if is_run:
        track_tables(run, result, paper_tables.write(run).markdown(), warned)
    if as_json:
        print_json(result)
    elif is_run:
        paper_tables.build([run]).render(console)
    else:
        console.print(evaluation_table(result))


@verbs.command(rich_help_panel=RESULTS)
def calibrate(
    run: RunArgument,
    checkpoint: CheckpointOption = "best",
    stores: Annotated[Path | None, typer.Option(help="Folder of the stores; by default that of the recipe.")] = None,
    directions: Annotated[int, typer.Option(min=1, help="Derivatives for each error bar of conservative forces.")] = 32,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or xpu.")] = "auto",
    as_json: Json = False,
) -> None:
    """Give the model of a run error bars, from its training and validation data; nothing is trained.

    Writes uncertainty.safetensors, which `ramify export` includes, and prints their quality on the test splits.
    """
    from ramify.parallel.startup.launch import choose_device, detect_launcher
    from ramify.uncertainty.calibrate import calibrate_run

    chosen = choose_device(device, detect_launcher(), key="--device")
    with Steps(console, f"calibrate {escape(str(run))}", quiet=as_json) as steps:
        bars = calibrate_run(run, checkpoint, stores, chosen, directions, steps.counted)
    if as_json:
        print_json(bars.measured)
    else:
        console.print(error_bar_table(bars.measured))


def _subject(path: Path, stores: Path | None) -> "Subject":
    from ramify.inference.evaluate_model import subject_of_saved
    from ramify.inference.model import read_saved

    return subject_of_saved(read_saved(path), stores)


def _evaluate_file(
    run: Path, checkpoint: str, file: Path, dataset: str | None, form: str | None, device: str, *, as_json: bool
) -> None:
    """Prints the errors on a labelled file."""
    from ramify.inference.evaluate_model import evaluate_file
    from ramify.inference.model import load
    from ramify.parallel.startup.launch import choose_device, detect_launcher

    loaded = load(run, checkpoint=checkpoint, device=choose_device(device, detect_launcher(), key="--device"))
    with Steps(console, f"evaluate {escape(str(file))}", quiet=as_json) as steps:
        result = evaluate_file(loaded, file, dataset, form, progress=steps.counted)
    if as_json:
        print_json(result)
        return
    console.print(evaluation_table(result))
    if result["skipped"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result["skipped"].items())
        warned(reasons, console, "skipped")


@verbs.command(rich_help_panel=RESULTS)
def tables(
    runs: Annotated[list[Path], typer.Argument(help="Directories of evaluated runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    rmse: Annotated[bool, typer.Option("--rmse", help="Root mean square errors.")] = False,
    total: Annotated[
        bool, typer.Option("--total", help="Energies of whole structures in meV, forces in meV/Å, as in most papers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the paper's Tables 1 and 2 for one or several runs, with the trivial predictor in the last row."""
    from ramify.report import tables as paper_tables
    from ramify.report.measure import Measure

    built = paper_tables.build(runs, Measure(rmse, total))
    if as_json:
        print_json(built.to_dict())
    elif markdown:
        say(built.markdown())
    else:
        built.render(console)


@verbs.command(rich_help_panel=RESULTS)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Directories of evaluated runs.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write. Default: report.html in the run, or comparison.html for several runs."),
    ] = None,
) -> None:
    """Write report.html for an evaluated run, or comparison.html for several: one file with all tables and figures."""
    from ramify.report.compare.compare import write_comparison
    from ramify.report.report import write_report

    written = write_report(runs[0], out) if len(runs) == 1 else write_comparison(runs, out or Path("comparison.html"))
    say(str(written))


@verbs.command(rich_help_panel=RESULTS)
def inspect(
    path: Annotated[Path, typer.Argument(help="Directory of a store, a run, a checkpoint or an export.")],
    verify: Annotated[bool, typer.Option("--verify", help="Also compare all checksums.")] = False,
    as_json: Json = False,
) -> None:
    """Show the contents of a store, a run, a checkpoint or an export."""
    from ramify.inspect import describe

    title, facts = describe(path, verify=verify)
    if as_json:
        print_json(facts)
        return
    table = Table(title=Text(title), show_header=False, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    console.print(table)
