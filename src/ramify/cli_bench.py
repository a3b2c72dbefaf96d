"""The verbs of `ramify bench`, each a thin call into `ramify.bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ramify.cli_words import Json, Overrides, RecipeArgument, console, print_json
from ramify.errors import RamifyError

bench = typer.Typer(
    help="Speed and memory, measured, as JSON, with the machine's own limits beside.", no_args_is_help=True
)
BranchesOption = Annotated[
    int | None, typer.Option(help="So many made-up datasets alike instead of the recipe's, a branch for each.", min=1)
]
SizesOption = Annotated[
    str | None,
    typer.Option(help="Make up datasets of these sizes: a YAML file, or one that comes along (paper); else stores."),
]


@bench.command("scale")
def bench_scale(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="Folder for scale.json, scale.svg and scale.png; cases add up in it.")
    ] = Path("bench-scale"),
    ranks: Annotated[
        str, typer.Option(help="Numbers of ranks; started on this machine. Under srun: those there.")
    ] = "1,2",
    placements: Annotated[
        str, typer.Option(help="As parallel.placement; +shard after one cuts up the encoder.")
    ] = "replicated,per-branch",
    modes: Annotated[str, typer.Option(help="weak: --batch per rank; strong: --total per step.")] = "weak,strong",
    batch: Annotated[int, typer.Option(help="Structures per rank in weak scaling.", min=1)] = 8,
    total: Annotated[int, typer.Option(help="Structures per step in strong scaling.", min=1)] = 16,
    branches: BranchesOption = None,
    sizes: SizesOption = None,
    warmup: Annotated[int, typer.Option(help="Steps of each case that do not count.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Steps of each case that count.", min=1)] = 10,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Also measure, on one rank, what `ramify bench predict` is fitted to.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Seconds that one case may take.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Weak and strong scaling by real training steps, over numbers of ranks and placements. Also by srun, mpiexec."""
    from ramify.bench.scale import Sweep, run_scale
    from ramify.bench.text import scale_line
    from ramify.planning.workload import read_sizes
    from ramify.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    sweep = Sweep(
        resolved,
        _numbers("--ranks", ranks),
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

    def say(found: dict[str, Any]) -> None:
        if not as_json:
            console.print(scale_line(found), markup=False, highlight=False, soft_wrap=True)

    content = run_scale(sweep, out, say, limit)
    if content is not None and as_json:
        print_json(content)


@bench.command("step")
def bench_step(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for step.json and traces.")] = Path("bench-step"),
    datasets: Annotated[str | None, typer.Option(help="Only these of the recipe: qm7x,ani1x.")] = None,
    stores: Annotated[Path | None, typer.Option(help="Folder of the prepared stores, instead of the recipe's.")] = None,
    sizes: SizesOption = None,
    batch: Annotated[int, typer.Option(help="Structures per step.", min=1)] = 32,
    precision: Annotated[str, typer.Option(help="As train.precision: fp32,bf16.")] = "",
    forces: Annotated[str, typer.Option(help="As model.force_head.kind: direct,conservative.")] = "",
    warmup: Annotated[int, typer.Option(help="Steps of each case that do not count.", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="Steps of each case that count.", min=1)] = 7,
    profile: Annotated[bool, typer.Option("--profile", help="Also a trace, and the ten dearest operations.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds that one case may take.")] = 600.0,
    as_json: Json = False,
) -> None:
    """What a training step costs on one process, by phase, beside the machine's own matrix product."""
    from ramify.bench.step import StepBench, run_bench
    from ramify.bench.text import step_lines
    from ramify.planning.workload import read_sizes
    from ramify.recipe import load_recipe

    placed = [f"stores={stores}"] if stores else []
    resolved = load_recipe(recipe, [*(overrides or []), *placed, f"train.batch={batch}"])
    measured = StepBench(
        resolved,
        _words(datasets),
        read_sizes(sizes, resolved) if sizes else {},
        _words(precision),
        _words(forces),
        warmup,
        steps,
        profile,
    )

    def say(found: dict[str, Any]) -> None:
        if not as_json:
            console.print("\n".join(step_lines(found)), markup=False, highlight=False, soft_wrap=True)

    content = run_bench(measured, out, say, limit)
    if as_json:
        print_json(content)


@bench.command("memory")
def bench_memory(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder for memory.json, memory.svg and memory.png.")] = Path(
        "bench-memory"
    ),
    branches: Annotated[str, typer.Option(help="Numbers of made-up branches, each on as many ranks.")] = "1,4,8,16,32",
    placements: Annotated[str, typer.Option(help="As parallel.placement.")] = "replicated,per-branch",
    check: Annotated[int, typer.Option(help="So many branches again, with all ranks there; 0 for none.", min=0)] = 0,
    limit: Annotated[float, typer.Option(help="Seconds that one layout may take.")] = 600.0,
    as_json: Json = False,
) -> None:
    """What the fullest rank holds, measured, against the number of branches; beside what is planned."""
    from ramify.bench.memory import MemoryBench, run_memory
    from ramify.bench.text import memory_line, memory_summary
    from ramify.recipe import load_recipe

    measured = MemoryBench(
        load_recipe(recipe, overrides or []), _numbers("--branches", branches), placements.split(","), check
    )

    def say(found: dict[str, Any]) -> None:
        if not as_json:
            console.print(memory_line(found), markup=False, highlight=False, soft_wrap=True)

    content = run_memory(measured, out, say, limit)
    if as_json:
        print_json(content)
    else:
        console.print(memory_summary(content), markup=False, highlight=False, soft_wrap=True)


@bench.command("predict")
def bench_predict(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    measured: Annotated[
        Path | None, typer.Option(help="A scale.json with --calibrate: the cost model is fitted to it and checked.")
    ] = None,
    machine: Annotated[str, typer.Option(help="here (as measured), frontier, perlmutter or aurora.")] = "here",
    network: Annotated[
        str | None, typer.Option(help="Another network, GB/s and microseconds: 12.5,10.", metavar="GB,US")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for predict.json, predict.svg and predict.png.")] = Path(
        "bench-predict"
    ),
    batch: Annotated[int, typer.Option(help="Structures per rank in weak scaling.", min=1)] = 160,
    total: Annotated[int, typer.Option(help="Structures per step in strong scaling.", min=1)] = 6400,
    sizes: Annotated[str | None, typer.Option(help="As of `ramify plan`.")] = None,
    as_json: Json = False,
) -> None:
    """Step times on up to 1,920 ranks and with up to 64 branches, by a cost model; how far it is off where measured."""
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
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@bench.command("rank", hidden=True)
def bench_rank(source: Path, target: Path) -> None:
    """One rank of a layout of `bench memory`, as that starts it."""
    from ramify.bench.memory import run_rank

    run_rank(source, target)


@bench.command("step-case", hidden=True)
def bench_step_case(source: Path, target: Path) -> None:
    """A case of `bench step`, as that starts it."""
    from ramify.bench.step import run_case

    run_case(source, target)


@bench.command("case", hidden=True)
def bench_case(source: Path, target: Path) -> None:
    """One rank of a case of `bench scale`, as that starts it."""
    from ramify.bench.scale import run_case

    run_case(source, target)


def _words(text: str | None) -> list[str]:
    """The words in `a,b`."""
    return [word.strip() for word in text.split(",")] if text else []


def _numbers(option: str, text: str) -> list[int]:
    """The numbers in `1,2,4`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise RamifyError(f"{option} {text}: accepted are whole numbers above 0, e.g. 1,2,4")
    return [int(part) for part in parts]
