"""The command that trains a trained model on new data: finetune."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ramify.cli.messages import (
    console,
    interrupted_training,
    print_json,
    say,
    say_written,
    training_stopped,
    warned,
)
from ramify.cli.options import (
    MAKING,
    CheckpointOption,
    ContinueOption,
    Json,
    ModelArgument,
    NewRun,
    Overrides,
    RecipeArgument,
)
from ramify.cli.progress import training_output
from ramify.cli.tables import errors_table
from ramify.errors import RamifyError

if TYPE_CHECKING:
    from ramify.finetune.run import Report

verbs = typer.Typer()


@verbs.command(rich_help_panel=MAKING)
def finetune(
    model: ModelArgument,
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: NewRun = None,
    mode: Annotated[
        str | None, typer.Option(help="What to train: new-branch, keep-branch, frozen-encoder, lora or replay.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Branch that the new one starts from, or fresh; keep-branch: branch to train."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of optimizer steps; 0 only evaluates.", min=0)] = None,
    checkpoint: CheckpointOption = "best",
    continued: ContinueOption = False,
    as_json: Json = False,
) -> None:
    """Train a trained model on new data, and compare its errors before and after.

    Also runs under torchrun, srun and mpiexec. If a signal or train.time_limit stops the run, the exit status is 75;
    the same command with --continue continues it.
    """
    from ramify.recipe import load_recipe

    if run is None:
        raise RamifyError("finetune needs a directory for the new run", fix="--run DIR")
    resolved = load_recipe(recipe, overrides or [])
    chosen = mode or resolved.finetune.mode
    if chosen is None or resolved.finetune.mode not in (None, chosen):
        raise RamifyError(
            f"--mode {mode}, but finetune.mode of the recipe: {resolved.finetune.mode}",
            fix="give one --mode: new-branch, keep-branch, frozen-encoder, lora or replay",
        )
    # after the recipe, so that errors in it are shown before PyTorch is imported
    from ramify.finetune import run as finetuning
    from ramify.finetune.resolve import FinetuneRequest
    from ramify.run.run import Run
    from ramify.run.stop import Stop
    from ramify.train.start import this_process, torchrun_restarts

    resume_hint = "the same command and --continue"
    with (
        interrupted_training(run, resume_hint),
        Stop(resolved.train.time_limit, at_once=True) as stop,
        this_process(resolved) as world,
        training_output(world.is_rank_zero and not as_json) as (callbacks, edges),
    ):

        def measured(report: "Report") -> None:
            if not as_json:
                _print_errors(report)

        request = FinetuneRequest(chosen, str(model), start, steps, checkpoint)
        if (continued or torchrun_restarts()) and Run.exists(run):
            found = finetuning.resume(run, callbacks, edges, world, stop, measured=measured)
        else:
            found = finetuning.finetune(request, resolved, run, callbacks, edges, world, stop, measured=measured)
        found.fit()
    trainer = found.trainer
    if trainer.layout.is_rank_zero and found.report is not None and not trainer.stopped_by:
        if as_json:
            print_json(found.report.to_dict())
        else:
            console.print(errors_table(found.report.to_dict()))
            _print_end(found.report, run)
    if trainer.stopped_by:
        step, total = trainer.progress.step, trainer.total_steps
        training_stopped(trainer.stopped_by, step, total, resume_hint, visible=trainer.layout.is_rank_zero)


def _print_errors(report: "Report") -> None:
    """Prints the errors before the first step."""
    console.print(errors_table(report.to_dict()))
    for text in report.warnings():
        warned(text, console)


def _print_end(report: "Report", run: Path) -> None:
    if not report.best_step:
        say("no evaluation was better than that before the first step")
    say_written(f"best weights of step {report.best_step}; run", run)
