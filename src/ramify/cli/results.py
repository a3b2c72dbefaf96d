"""The verbs that show errors and contents: evaluate, tables, report, inspect."""

import json
from pathlib import Path
from typing import Annotated

import typer
from ramify.cli.options import RESULTS, CheckpointOption, Json, RunArgument, SplitOption, console, print_json
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ramify.console import Steps
from ramify.errors import RamifyError

verbs = typer.Typer()


@verbs.command(rich_help_panel=RESULTS)
def evaluate(
    run: RunArgument,
    split: SplitOption = "test",
    checkpoint: CheckpointOption = "best",
    others: Annotated[str | None, typer.Option(help="Evaluate the datasets of this recipe as well.")] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or xpu.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure the errors of every branch on every dataset; writes evaluation.json and tables.

    Starts under torchrun, srun and mpiexec, too. The errors are exact for any number of processes.
    """
    from ramify.evaluate.evaluate import Evaluator, met
    from ramify.recipe import load_recipe
    from ramify.report import tables as paper_tables

    if split not in ("train", "val", "test"):
        raise RamifyError(f"--split {split}: accepted are train, val and test")
    if device not in ("auto", "cpu", "cuda", "xpu"):
        raise RamifyError(f"--device {device}: accepted are auto, cpu, cuda and xpu")
    with met(device) as ranks:
        quiet = as_json or not ranks.is_rank_zero
        with Steps(console, f"evaluate {escape(str(run))}", quiet=quiet) as steps:
            result = Evaluator(
                run,
                split,
                checkpoint,
                others=load_recipe(others) if others else None,
                device=ranks.device,
                ranks=ranks,
                progress=lambda dataset, branch, done: steps.counted(done),
            ).evaluate()
        if not ranks.is_rank_zero:
            return
    paper_tables.write(run)
    if as_json:
        print_json(result)
    else:
        paper_tables.build([run]).render(console)


@verbs.command(rich_help_panel=RESULTS)
def tables(
    runs: Annotated[list[Path], typer.Argument(help="Directories of evaluated runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Print the paper's Tables 1 and 2 for several runs side by side, with trivial predictors below."""
    from ramify.report import tables as paper_tables

    built = paper_tables.build(runs)
    if as_json:
        print_json(built.to_dict())
    elif markdown:
        console.print(built.markdown(), markup=False, soft_wrap=True)
    else:
        built.render(console)


@verbs.command(rich_help_panel=RESULTS)
def report(run: RunArgument) -> None:
    """Write report.html for an evaluated run: one file with all tables and figures."""
    from ramify.report.report import write_report

    console.print(str(write_report(run)), markup=False, soft_wrap=True)


@verbs.command(rich_help_panel=RESULTS)
def inspect(
    path: Annotated[Path, typer.Argument(help="Directory of a store, a run, a checkpoint or an export.")],
    verify: Annotated[bool, typer.Option("--verify", help="Compare all checksums, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a store, a run, a checkpoint or an export holds."""
    from ramify.inspect import describe

    title, facts = describe(path, verify=verify)
    if as_json:
        print_json(facts)
        return
    table = Table(title=Text(title), show_header=False, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    console.print(table)
