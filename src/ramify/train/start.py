"""Starting and resuming runs, on one process or on several that call these functions together."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ramify.batches.open import check_same_data, close_shared_stores, open_split, open_stores, place_stores
from ramify.checkpoint.checkpoint import Checkpoint, tidy
from ramify.errors import RamifyError
from ramify.parallel.layout import Layout
from ramify.parallel.startup.launch import LaunchEnv, choose_device, detect_launcher
from ramify.parallel.startup.rendezvous import connect
from ramify.parallel.sync import each, on_rank_zero
from ramify.parallel.world import World
from ramify.planning.model_profile import ModelProfile
from ramify.planning.plan import choose_placement, placement_profile
from ramify.recipe import Recipe, parse_recipe
from ramify.run.changes import Changes, compare
from ramify.run.run import Run
from ramify.run.stop import Stop
from ramify.run.trackers.trackers import require_packages
from ramify.store.manifest import Manifest
from ramify.store.store import Store
from ramify.train.init_weights import load_pretrained, read_pretrained
from ramify.train.loop import Trainer
from ramify.train.optimization.precision import Precision, require_fast_products
from ramify.train.reporting import Callbacks

EdgeProgress = Callable[[str, int], None]


@contextmanager
def this_process(recipe: Recipe) -> Iterator[World]:
    """Connects this process to the others of its launcher, inside of a `with` block.

    Raises:
        RamifyError: the device does not exist, or another rank does not connect or is lost.
    """
    launch_env, timeout = detect_launcher(), recipe.parallel.timeout
    device = _device(recipe, launch_env)
    with connect(launch_env, device, timeout) as world:
        yield world
        with world.watchdog.waiting():
            close_shared_stores()


def _device(recipe: Recipe, launch_env: LaunchEnv) -> torch.device:
    """The device of this process, which must support the precision of the recipe."""
    device = choose_device(recipe.train.device, launch_env)
    Precision(recipe.train.precision, device)
    return device


def start_run(
    recipe: Recipe,
    path: Path,
    callbacks: Callbacks,
    edges: EdgeProgress = lambda dataset, structures: None,
    world: World | None = None,
    stop: Stop | None = None,
) -> Trainer:
    """Creates the run directory and a trainer at step 0; writes nothing if the data are invalid.

    Args:
        recipe: of the run.
        path: of the run; must not exist.
        callbacks, edges: called during the run, and while edges are computed.
        world: this process among the others; a single one by default.
        stop: requests to stop the run early.

    Raises:
        RamifyError: see `require_fast_products`, `open_stores`, `choose_placement` and `Run.create`; on all ranks
            alike.
    """
    world = world or alone(recipe)
    configure_process(recipe)
    _check_schedule(recipe, 0)
    on_rank_zero(world, lambda: Run.require_free(path))
    on_rank_zero(world, lambda: require_packages(recipe))
    each(world, lambda: require_fast_products(recipe.train, world.device))
    stores = each(world, lambda: open_stores(recipe))
    maker = _Maker(recipe, world, stop or Stop(), stores, callbacks, edges)
    layout, run = maker.layout(), Run(path)
    trainer = maker.trainer(run, layout, maker.readers(layout))
    each(layout, lambda: _begin(trainer))
    on_rank_zero(layout, lambda: run.create(recipe, maker.data))
    return trainer


def _check_schedule(recipe: Recipe, step: int) -> None:
    """Refuses a schedule that begins after the current step, on all ranks."""
    if recipe.schedule.start > step:
        error = RamifyError(
            f"schedule.start: {recipe.schedule.start}, but the run is at step {step}; accepted: a step that the "
            "run has reached, 0 in a new one",
            fix=f"set schedule.start={step} to begin the schedule here",
        )
        error.everywhere = True
        raise error


def _begin(trainer: Trainer) -> None:
    """Loads the pretrained weights of a fine-tuning run."""
    if trainer.recipe.finetune.mode is not None:
        load_pretrained(trainer.state, trainer.recipe, read_pretrained(trainer.recipe.finetune))


def resume_run(
    path: Path,
    callbacks: Callbacks,
    edges: EdgeProgress = lambda dataset, structures: None,
    world: World | None = None,
    stop: Stop | None = None,
    *,
    recipe: Recipe | None = None,
    automatic: bool = False,
) -> Trainer:
    """A trainer at the latest checkpoint of a run, which continues as if the run had never stopped.

    Args:
        path: of the run.
        callbacks, edges: called during the run, and while edges are computed.
        world: this process among the others; their number may differ from before.
        stop: requests to stop the run early.
        recipe: to continue with; None for the run's own. It replaces the run's own recipe.
        automatic: without a user: wait for the lock where its holder may be dead, and restart at step 0 a run that
            ended before its first checkpoint.

    Raises:
        RamifyError: there is no run or no checkpoint, it is damaged, another process trains the run, the recipe or the
            stores have changed in a way that is not allowed, or slow products (`require_fast_products`); on all ranks.
    """
    ranks = world or World()
    run = each(ranks, lambda: Run.open(path))
    now, where = (recipe, "the recipe") if recipe else (each(ranks, run.recipe), str(run.path / "recipe.yaml"))
    on_rank_zero(ranks, lambda: run.lock(wait=automatic))
    try:
        checkpoint, changes, stores = each(ranks, lambda: _read_run(run, now, where, automatic))
        maker = _Maker(now, world or alone(now), stop or Stop(), stores, callbacks, edges)
        return _resume(run, maker, checkpoint, changes)
    except BaseException:
        run.unlock()
        raise


def continue_run(
    recipe: Recipe,
    path: Path,
    callbacks: Callbacks,
    edges: EdgeProgress = lambda dataset, structures: None,
    world: World | None = None,
    stop: Stop | None = None,
) -> Trainer:
    """Resumes the run at `path` with `recipe` if there is one, else starts it. Raises as those two functions."""
    world = world or alone(recipe)
    if on_rank_zero(world, lambda: Run.exists(path)):
        return resume_run(path, callbacks, edges, world, stop, recipe=recipe, automatic=True)
    return start_run(recipe, path, callbacks, edges, world, stop)


def _read_run(
    run: Run, now: Recipe, where: str, automatic: bool
) -> tuple[Checkpoint | None, Changes, dict[str, Store]]:
    """The checkpoint to resume from (None: start at step 0), the changes since it was written, and the stores."""
    if automatic and run.never_had_checkpoint():
        return None, compare(run.recipe(), now, where), open_stores(now)
    checkpoint = run.checkpoint("latest")
    changes = compare(parse_recipe(checkpoint.manifest["recipe"], str(checkpoint.path)), now, where)
    stores, known = open_stores(now), checkpoint.datasets
    check_same_data(known, {name: store for name, store in stores.items() if name in known})
    return checkpoint, changes, stores


def _resume(run: Run, maker: "_Maker", checkpoint: Checkpoint | None, changes: Changes) -> Trainer:
    recipe = maker.recipe
    configure_process(recipe)
    on_rank_zero(maker.world, lambda: require_packages(recipe))
    each(maker.world, lambda: require_fast_products(recipe.train, maker.world.device))
    layout = maker.layout()
    trainer = maker.trainer(run, layout, maker.readers(layout))
    _check_schedule(recipe, 0 if checkpoint is None else checkpoint.step)
    if checkpoint is not None:
        layout.watchdog.arrive(f"reading {checkpoint.path.name}")
        each(layout, lambda: trainer.restore(checkpoint, changes))
    else:
        each(layout, lambda: _begin(trainer))
    on_rank_zero(layout, lambda: _adopt(run, recipe, maker.data, checkpoint, changes))
    return trainer


def _adopt(
    run: Run, recipe: Recipe, data: Mapping[str, Manifest], checkpoint: Checkpoint | None, changes: Changes
) -> None:
    """After the run is restored: removes unneeded checkpoints, keeps the last checkpoint of each dropped dataset, and
    writes the recipe into the run directory."""
    run.check_lock()
    if run.checkpoints.is_dir():
        kept = {f"with-{dataset}": f"step-{checkpoint.step:08d}" for dataset in changes.dropped} if checkpoint else {}
        tidy(run.checkpoints, **kept)
    if changes.keys or recipe != run.recipe():
        run.write(recipe, data)
    run.changed = changes.keys


@dataclass(frozen=True)
class _Maker:
    """Creates layout, readers and trainer of a rank."""

    recipe: Recipe
    world: World
    stop: Stop
    stores: Mapping[str, Store]
    callbacks: Callbacks
    edges: EdgeProgress

    @property
    def data(self) -> dict[str, Manifest]:
        """The manifests of all stores."""
        return {name: store.manifest for name, store in self.stores.items()}

    def layout(self) -> Layout:
        """The layout of this rank."""
        world = self.world
        world.watchdog.arrive("the plan of the ranks")
        profile = on_rank_zero(world, lambda: _as_data(placement_profile(self.recipe, self.stores, world.size)))
        model = None if profile is None else ModelProfile.of_data(profile)
        placement = each(world, lambda: choose_placement(self.recipe, self.stores, world.size, model))
        if world.size == 1:
            return Layout.alone(list(self.recipe.datasets_of_branches()), world.device)
        return Layout.spread(placement, world)

    def readers(self, layout: Layout) -> dict[str, Any]:
        """Readers of both splits, for the datasets of hosted branches."""
        branch_of = self.recipe.branch_of_datasets()
        stores = {name: store for name, store in self.stores.items() if branch_of[name] in layout.hosted}
        hosts = {name: layout.placement.hosts[branch_of[name]] for name in stores}

        def open_both() -> dict[str, Any]:
            placed = place_stores(self.recipe, stores, hosts)
            return {split: open_split(self.recipe, placed, split, self.edges) for split in ("train", "val")}

        layout.watchdog.arrive("reading stores and finding edges")
        return each(layout, open_both)

    def trainer(self, run: Run, layout: Layout, readers: Mapping[str, Any]) -> Trainer:
        """The trainer at step 0."""
        train, val = readers["train"], readers["val"]
        layout.watchdog.arrive("making the model")
        return each(layout, lambda: Trainer(self.recipe, run, self.data, train, val, layout, self.stop, self.callbacks))


def _as_data(cost: ModelProfile | None) -> dict[str, Any] | None:
    return None if cost is None else asdict(cost)


def torchrun_restarts() -> int:
    """Number of restarts by torchrun (--max-restarts) after a process failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def alone(recipe: Recipe) -> World:
    """The world of a single process."""
    return World(device=_device(recipe, LaunchEnv()))


def configure_process(recipe: Recipe) -> None:
    """Sets threads and memory allocation of this process; call it before large tensors are created."""
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Configures glibc to keep large freed blocks instead of returning them to the system: each step frees and
    allocates the same gigabyte, and new pages for it cost up to a third of the step (M_TRIM_THRESHOLD = -1,
    M_MMAP_THRESHOLD = -3)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc only
            libc.mallopt(-1, 2**31 - 1)
            libc.mallopt(-3, 2**30)
