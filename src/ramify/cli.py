"""The command line: one verb per job, each a thin call into the package."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ramify import __version__
from ramify.console import Steps, counts_table, say_training
from ramify.errors import RamifyError

app = typer.Typer(
    help="Pre-train one graph neural network on many first-principles datasets at once. "
    "An error is one message; add --debug to any verb for the traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console()
errors = Console(stderr=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe: YAML file, or one that comes along (demo, five, paper).")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to override: train.max_steps=20 ...")]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
SplitOption = Annotated[str, typer.Option(help="train, val or test.")]


@app.command()
def demo(
    run: Annotated[Path, typer.Option(help="Where to; with a number appended when it is taken.")] = Path("demo-run"),
    overrides: Overrides = None,
) -> None:
    """Everything once, on the five embedded datasets: prepare, train, evaluate, tables, report. Minutes on a laptop."""
    from ramify.demo import run_demo

    report = run_demo(run, overrides or [], console)
    console.print(f"report: [bold]{escape(str(report))}[/bold]", soft_wrap=True)


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option(help="Replace stores that were prepared from other files or options.")] = False,
    as_json: Json = False,
) -> None:
    """Original files -> stores: units, quality gates, splits, reference energies; says what was dropped and why."""
    from ramify.data.prepare import prepare_dataset
    from ramify.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    manifests = {}
    for name, options in resolved.datasets.items():
        with Steps(console, f"prepare {name}", quiet=as_json) as steps:
            manifests[name] = prepare_dataset(
                name, options, Path(resolved.stores), base=Path.cwd(), force=force, progress=steps.counted
            )
    plain = {name: manifest.model_dump(mode="json") for name, manifest in manifests.items()}
    if as_json:
        _print_json(plain)
    else:
        console.print(counts_table(plain))


@app.command()
def train(
    arguments: Annotated[list[str] | None, typer.Argument(help="RECIPE, then keys to override.")] = None,
    run: Annotated[Path | None, typer.Option(help="Directory of the new run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this directory.")] = None,
) -> None:
    """Train a model into a run directory, or go on with one (--resume DIR)."""
    from ramify.recipe import load_recipe
    from ramify.train.start import resume_run, start_run

    if (resume is None) == (run is None) or (resume is None) == (not arguments):
        raise RamifyError("train needs a recipe and --run DIR, or --resume DIR alone")
    with say_training(console) as (watch, edges):
        if resume is not None:
            trainer = resume_run(resume, watch, edges)
            console.print(f"continuing at step {trainer.progress.step} of {trainer.total_steps}")
        else:
            assert run is not None
            assert arguments
            trainer = start_run(load_recipe(arguments[0], arguments[1:]), run, watch, edges)
        progress = trainer.fit()
    console.print(
        f"{progress.step} steps in {progress.seconds / 60:.1f} min; best metric {progress.best:.4f} at step "
        f"{progress.best_step}; run: [bold]{escape(str(trainer.run.path))}[/bold]",
        soft_wrap=True,
    )


@app.command()
def evaluate(
    run: RunArgument,
    split: SplitOption = "test",
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a step's folder name.")] = "best",
    others: Annotated[str | None, typer.Option(help="Also evaluate the datasets of this recipe.")] = None,
    as_json: Json = False,
) -> None:
    """Exact errors of every branch on every dataset -> evaluation.json, tables."""
    from ramify.evaluate import tables as paper_tables
    from ramify.evaluate.evaluate import Evaluator
    from ramify.recipe import load_recipe

    if split not in ("train", "val", "test"):
        raise RamifyError(f"--split {split}: accepted are train, val and test")
    with Steps(console, f"evaluate {escape(str(run))}", quiet=as_json) as steps:
        result = Evaluator(
            run,
            split,
            checkpoint,
            others=load_recipe(others) if others else None,
            progress=lambda dataset, branch, done: steps.counted(done),
        ).evaluate()
    paper_tables.write(run)
    if as_json:
        _print_json(result)
    else:
        paper_tables.build([run]).render(console)


@app.command()
def tables(
    runs: Annotated[list[Path], typer.Argument(help="Run directories that have been evaluated.")],
    markdown: Annotated[bool, typer.Option(help="Print Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """The paper's Tables 1 and 2 for several runs side by side, trivial predictors below."""
    from ramify.evaluate import tables as paper_tables

    built = paper_tables.build(runs)
    if as_json:
        _print_json(built.to_dict())
    elif markdown:
        console.print(built.markdown(), markup=False, soft_wrap=True)
    else:
        built.render(console)


@app.command()
def report(run: RunArgument) -> None:
    """One self-contained report.html of an evaluated run."""
    from ramify.evaluate.report import write_report

    console.print(str(write_report(run)), markup=False, soft_wrap=True)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A store, a run directory or a checkpoint.")],
    verify: Annotated[bool, typer.Option(help="Also compare all checksums.")] = False,
    as_json: Json = False,
) -> None:
    """What a store, a run or a checkpoint holds."""
    from ramify.inspect import describe

    title, facts = describe(path, verify=verify)
    if as_json:
        _print_json(facts)
        return
    table = Table(title=Text(title), show_header=False, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    console.print(table)


@app.command()
def version() -> None:
    """The version of ramify."""
    console.print(__version__)


def main() -> None:
    """Runs a verb; what a user can act on ends as one message and exit status 1, a traceback only with --debug."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(args=arguments, prog_name="ramify")
    except (RamifyError, OSError) as error:  # OSError: what the system refuses, e.g. permissions; it names the file
        if debug:
            raise
        errors.print("[bold red]error:[/bold red]", end=" ")
        text = "\n  ".join([str(error), *getattr(error, "__notes__", ())])
        errors.print(text, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == 130:  # typer's for Ctrl-C
            message = "interrupted; a run goes on from its latest checkpoint with `ramify train --resume DIR`"
            errors.print(message, soft_wrap=True)
        raise


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
