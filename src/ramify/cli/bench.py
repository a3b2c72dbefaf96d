"""The commands of `ramify bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ramify.cli.messages import print_json, say
from ramify.cli.options import Json, Overrides, RecipeArgument, numbers

verbs = typer.Typer(
    help="Measure speed and memory, and compare them with the limits of the machine.", no_args_is_help=True
)
BranchesOption = Annotated[
    int | None,
    typer.Option(help="Use this many equal synthetic datasets, a branch each, instead of the recipe's.", min=1),
]
SizesOption = Annotated[
    str | None,
    typer.Option(help="Use synthetic datasets of these sizes: a YAML file, or the built-in paper."),
]


@verbs.command("scale")
def bench_scale(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Directory for scale.json, scale.svg and scale.png; new cases are added.")
    ] = Path("bench-scale"),
    ranks: Annotated[
        str, typer.Option(help="Numbers of ranks to start on this machine; not used under srun and mpiexec.")
    ] = "1,2",
    placements: Annotated[
        str, typer.Option(help="Values of parallel.placement; append +shard to shard the encoder.")
    ] = "replicated,per-branch",
    modes: Annotated[str, typer.Option(help="weak: --batch per rank; strong: --total per step.")] = "weak,strong",
    batch: Annotated[int, typer.Option(help="Structures per rank in weak scaling.", min=1)] = 8,
    total: Annotated[int, typer.Option(help="Structures per step in strong scaling.", min=1)] = 16,
    branches: BranchesOption = None,
    sizes: SizesOption = None,
    warmup: Annotated[int, typer.Option(help="Untimed steps of each case.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Timed steps of each case.", min=1)] = 10,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Also measure the cases that `ramify bench predict` is fitted to.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Time limit of one case in seconds.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Measure weak and strong scaling with real training steps, by number of ranks and by placement.

    Also runs under srun and mpiexec.
    """
    from ramify.bench.scale import Sweep, run_scale
    from ramify.bench.text import scale_line
    from ramify.planning.workload import read_sizes
    from ramify.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    sweep = Sweep(
        resolved,
        numbers("--ranks", ranks),
        placements.split(","),
        modes.split(","),
        batch,
        total,
        branches,
        read_sizes(sizes, resolved) if sizes else {},
        warmup,
        steps,
        calibrate,
    )

    def show(found: dict[str, Any]) -> None:
        if not as_json:
            say(scale_line(found))

    content = run_scale(sweep, out, show, limit)
    if content is not None and as_json:
        print_json(content)


@verbs.command("step")
def bench_step(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Directory for step.json and traces.")] = Path("bench-step"),
    datasets: Annotated[
        str | None, typer.Option(help="Use only these datasets of the recipe, e.g. qm7x,ani1x.")
    ] = None,
    stores: Annotated[Path | None, typer.Option(help="Directory of the stores, instead of the recipe's.")] = None,
    sizes: SizesOption = None,
    batch: Annotated[int, typer.Option(help="Structures per step.", min=1)] = 32,
    precision: Annotated[str, typer.Option(help="Values of train.precision, e.g. fp32,bf16.")] = "",
    forces: Annotated[str, typer.Option(help="Values of model.force_head.kind: direct,conservative.")] = "",
    warmup: Annotated[int, typer.Option(help="Untimed steps of each case.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Timed steps of each case.", min=1)] = 7,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also write a trace and list the ten most expensive operations.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Time limit of one case in seconds.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Measure a training step on one process, by phase, and compare it with the machine's matrix product."""
    from ramify.bench.step import StepBench, run_bench
    from ramify.bench.text import step_lines
    from ramify.planning.workload import read_sizes
    from ramify.recipe import load_recipe

    placed = [f"stores={stores}"] if stores else []
    resolved = load_recipe(recipe, [*(overrides or []), *placed, f"train.batch={batch}"])
    measured = StepBench(
        resolved,
        _items(datasets),
        read_sizes(sizes, resolved) if sizes else {},
        _items(precision),
        _items(forces),
        warmup,
        steps,
        profile,
    )

    def show(found: dict[str, Any]) -> None:
        if not as_json:
            say("\n".join(step_lines(found)))

    content = run_bench(measured, out, show, limit)
    if as_json:
        print_json(content)


@verbs.command("memory")
def bench_memory(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Directory for memory.json, memory.svg and memory.png.")] = Path(
        "bench-memory"
    ),
    branches: Annotated[
        str, typer.Option(help="Numbers of synthetic branches, each on as many ranks.")
    ] = "1,4,8,16,32",
    placements: Annotated[str, typer.Option(help="Values of parallel.placement.")] = "replicated,per-branch",
    check: Annotated[int, typer.Option(help="Repeat with this many branches and all ranks; 0: do not.", min=0)] = 0,
    limit: Annotated[float, typer.Option(help="Time limit of one layout in seconds.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Measure the largest memory of a rank by number of branches, and compare it with the plan."""
    from ramify.bench.memory import MemoryBench, run_memory
    from ramify.bench.text import memory_line, memory_summary
    from ramify.recipe import load_recipe

    measured = MemoryBench(
        load_recipe(recipe, overrides or []), numbers("--branches", branches), placements.split(","), check
    )

    def show(found: dict[str, Any]) -> None:
        if not as_json:
            say(memory_line(found))

    content = run_memory(measured, out, show, limit)
    if as_json:
        print_json(content)
    else:
        say(memory_summary(content))


@verbs.command("predict")
def bench_predict(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    measured: Annotated[
        Path | None, typer.Option(help="A scale.json measured with --calibrate, to fit and check the cost model.")
    ] = None,
    machine: Annotated[str, typer.Option(help="here (as measured), frontier, perlmutter or aurora.")] = "here",
    network: Annotated[
        str | None,
        typer.Option(help="Bandwidth in GB/s and latency in µs of another network, e.g. 12.5,10.", metavar="GB,US"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for predict.json, predict.svg and predict.png.")] = Path(
        "bench-predict"
    ),
    batch: Annotated[int, typer.Option(help="Structures per rank in weak scaling.", min=1)] = 160,
    total: Annotated[int, typer.Option(help="Structures per step in strong scaling.", min=1)] = 6400,
    sizes: Annotated[str | None, typer.Option(help="Sizes of datasets, as in `ramify plan`.")] = None,
    as_json: Json = False,
) -> None:
    """Predict step times on up to 1,920 ranks and with up to 64 branches by a cost model.

    Prints the error of the model if there are measurements.
    """
    from ramify.bench.predict.predict import run_prediction
    from ramify.bench.text import check_lines, prediction_lines
    from ramify.planning.workload import dataset_sizes, read_sizes
    from ramify.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    known = dataset_sizes(resolved, read_sizes(sizes, resolved) if sizes else {})
    content = run_prediction(resolved, known, out, measured, machine, network, batch, total)
    if as_json:
        print_json(content)
        return
    lines = [*(check_lines(content["check"]) if content["check"] else []), *prediction_lines(content)]
    say("\n".join(lines))


@verbs.command("rank", hidden=True)
def bench_rank(source: Path, target: Path) -> None:
    """One rank of a layout, started by `bench memory`."""
    from ramify.bench.memory import run_rank

    run_rank(source, target)


@verbs.command("step-case", hidden=True)
def bench_step_case(source: Path, target: Path) -> None:
    """One case, started by `bench step`."""
    from ramify.bench.step import run_case

    run_case(source, target)


@verbs.command("pace", hidden=True)
def bench_pace(source: Path, target: Path) -> None:
    """The time of a step, for studies and searches with equal time."""
    from ramify.bench.pace import run_case

    run_case(source, target)


@verbs.command("case", hidden=True)
def bench_case(source: Path, target: Path) -> None:
    """One rank of a case, started by `bench scale`."""
    from ramify.bench.scale import run_case

    run_case(source, target)


def _items(text: str | None) -> list[str]:
    """The items of `a,b`."""
    return [word.strip() for word in text.split(",")] if text else []
