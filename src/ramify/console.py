"""How long jobs look on the terminal: progress bars that stay honest, lines that stay short."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ramify.data.consistency import ACCEPTED

if TYPE_CHECKING:  # the loop brings PyTorch, which takes seconds to load: not for every verb
    from ramify.train.loop import Watch


class Steps:
    """A running count of structures, for jobs whose length is not known beforehand."""

    def __init__(self, console: Console, title: str, *, quiet: bool = False) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} structures"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, disable=quiet)
        self._task = self._progress.add_task(title, total=None)

    def counted(self, structures: int) -> None:
        """`structures` more are done."""
        self._progress.advance(self._task, structures)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


@contextmanager
def say_training(console: Console) -> Iterator[tuple["Watch", Callable[[str, int], None]]]:
    """Shows a training: a bar of steps, a line per evaluation, warnings.

    Gives (watch, listener for edges being found).
    """
    from ramify.train.loop import Watch

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    training = progress.add_task("train", total=None, visible=False)
    finding = progress.add_task("neighbour lists", total=None)

    def on_edges(dataset: str, structures: int) -> None:
        progress.update(finding, description=f"neighbour lists: {dataset}", advance=structures)

    def on_step(step: int, total: int) -> None:
        progress.update(finding, visible=False)
        progress.update(training, completed=step, total=total, visible=True)

    def on_trained(entry: dict[str, Any]) -> None:
        progress.update(training, description=f"train, loss {entry['loss']:.3f}")

    with progress:
        yield (
            Watch(
                step=on_step,
                trained=on_trained,
                evaluated=lambda entry: console.print(evaluation_line(entry), highlight=False),
                warned=lambda text: console.print(f"[bold yellow]warning:[/bold yellow] {text}", highlight=False),
            ),
            on_edges,
        )


def evaluation_line(entry: Mapping[str, Any]) -> str:
    """One evaluation, short: the metric, then each dataset's energy and force errors in percent of the trivial ones."""
    parts = [
        f"{name} {_percent(e['energy_mae'], e['trivial_energy_mae'])}"
        f"/{_percent(e['forces_mae'], e['trivial_forces_mae'])}"
        for name, e in entry["datasets"].items()
    ]
    mark = "*" if entry["best"] else " "
    return f"epoch {entry['epoch']:5.1f} metric {entry['metric']:.3f}{mark} E/F in % of trivial: " + "  ".join(parts)


def counts_table(manifests: Mapping[str, Any]) -> Table:
    """What prepare kept and dropped, by dataset."""
    table = Table(title="Prepared", title_justify="left")
    for heading in ("dataset", "train / val / test", "elements", "labels E / F / S", "slope dE/dx", "dropped"):
        table.add_column(heading, overflow="fold")
    for name, manifest in manifests.items():
        splits, labels, consistency = manifest["splits"], manifest["labels"], manifest["consistency"]
        slope = _slope(consistency["slope"])
        dropped = ", ".join(f"{count} {reason}" for reason, count in manifest["dropped"].items()) or "nothing"
        table.add_row(
            name,
            " / ".join(str(splits[s]["structures"]) for s in ("train", "val", "test")),
            str(len(manifest["elements"])),
            " / ".join(str(labels[kind]) for kind in ("energy", "forces", "stress")),
            slope,
            dropped,
        )
    return table


def _slope(slope: float | None) -> str:
    if slope is None:
        return "too few pairs"
    return f"{slope:.3f}" if ACCEPTED[0] <= slope <= ACCEPTED[1] else f"{slope:.3f} ! expected 1"


def _percent(found: float | None, trivial: float | None) -> str:
    return "-" if found is None or not trivial else f"{100 * found / trivial:.0f}"
