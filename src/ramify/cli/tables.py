"""Tables and lists that the verbs print."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ramify.cli.messages import say, warned
from ramify.labels import BUILT_IN, LABELS, measurable
from ramify.prepare.checks.consistency import ACCEPTED
from ramify.prepare.checks.gates import CONFLICT
from ramify.report.table_format import MARK
from ramify.store.manifest import SPLITS, Manifest
from ramify.structures import state_text

if TYPE_CHECKING:  # these import PyTorch, which takes seconds to load
    from ramify.evaluate.results import Evaluation


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """Errors of every branch on every dataset, followed by those of the trivial predictor."""
    on = result.get("file", f"the {result['split']} split")
    table = Table(title=f"Errors on {on}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("dataset", "branch", "structures"):
        table.add_column(heading)
    for heading in ("E MAE eV/atom", "E RMSE", "F MAE eV/Å", "F RMSE", "S MAE eV/Å³"):
        table.add_column(heading, justify="right")
    keys = ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse", "stress_mae")
    for trivial in result["trivial"]:
        dataset = trivial["dataset"]
        for row in (row for row in result["rows"] if row["dataset"] == dataset):
            own = "*" if result["branch_of"].get(dataset) == row["branch"] else ""
            errors = [_error(row[key]) for key in keys]
            table.add_row(dataset, row["branch"] + own, f"{row['structures']:,}", *errors)
        table.add_row(dataset, "trivial", "", *(_error(trivial[key]) for key in keys))
    return table


def error_bar_table(measured: Mapping[str, Mapping[str, Any]]) -> Table:
    """Quality of error bars on the test split, by dataset and quantity."""
    table = Table(title="Error bars on the test split", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("dataset")
    headings = (
        "",
        "rows",
        "rank correlation",
        "NLL",
        "of a constant",
        "within 1σ",
        "within 2σ",
        "error of certain half",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for dataset, found in measured.items():
        for quantity, m in found.items():
            rank = "-" if m["spearman"] is None else f"{m['spearman']:.2f}"
            shares = [f"{100 * m[key]:.0f} %" for key in ("coverage_1", "coverage_2", "half")]
            likelihoods = f"{m['nll']:.2f}", f"{m['nll_constant']:.2f}"
            table.add_row(dataset, quantity, f"{m['rows']:,}", rank, *likelihoods, *shares)
    return table


def own_errors_table(evaluation: "Evaluation") -> Table:
    """Errors of each dataset's own branch and of the trivial predictor: one line per dataset, in 80 columns."""
    table = _plain_table(f"MAE on the {evaluation.split} split; trivial: one energy per element, no forces")
    table.caption_justify = "left"
    table.add_column("dataset", no_wrap=True)
    labels = [name for name in BUILT_IN[:2] if any(row.mae(name) is not None for row in evaluation.rows)]
    for label in labels:
        for heading in (f"{LABELS[label].symbol} {LABELS[label].error_unit}", "trivial", "%"):
            table.add_column(heading, justify="right", no_wrap=True)
    for trivial in evaluation.trivial:
        row = evaluation.row(evaluation.branch_of.get(trivial.dataset), trivial.dataset)
        cells = []
        for label in labels:
            found, known = None if row is None else row.mae(label), trivial.mae(label)
            marked = found is not None and known is not None and measurable(label, known) and not found < known
            cells += [_error(found), _error(known), percent(label, found, known) + (f" {MARK}" if marked else "")]
            if marked:
                table.caption = f"{MARK} no better than trivial"
        table.add_row(trivial.dataset, *cells)
    return table


def _plain_table(title: str, gap: int = 2) -> Table:
    """A table with `gap` spaces, and that of the box, between columns."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )


def counts_table(manifests: Mapping[str, Manifest]) -> Table:
    """Numbers of structures that `prepare` kept and dropped: one line per dataset, in 80 columns."""
    table = _plain_table("Prepared", gap=1)
    for heading in ("dataset", "train/val/test", "elements", "labels E/F/S", "slope", "dropped"):
        table.add_column(heading, no_wrap=True)
    for name, manifest in manifests.items():
        table.add_row(*_counts(name, manifest))
    return table


def print_prepared(console: Console, manifests: Mapping[str, Manifest]) -> None:
    """Prints `counts_table`, then one line per dataset with dropped structures, and one line per warning, with the
    recipe key that corrects it."""
    console.print(counts_table(manifests))
    for name, manifest in manifests.items():
        if manifest.dropped:
            say(f"{name}: dropped {_reasons(manifest)}", console)
    for name, manifest in manifests.items():
        if manifest.states:
            say(f"{name}: {_states(manifest)}", console)
    for name, manifest in manifests.items():
        for text in manifest.warnings():
            warned(f"{name}: {text}", console)


def _counts(name: str, manifest: Manifest) -> tuple[str, ...]:
    """The cells of one dataset."""
    labels = manifest.labels.counts
    return (
        name,
        " / ".join(str(manifest.splits[s].structures) for s in SPLITS),
        str(len(manifest.elements)),
        ", ".join([" / ".join(str(labels[kind]) for kind in BUILT_IN), *_further_counts(labels)]),
        _slope(manifest.consistency.slope),
        f"{sum(manifest.dropped.values()):,}",
    )


def _states(manifest: Manifest) -> str:
    """Numbers of structures by charge and spin."""
    found = [(state_text(s.charge, s.spin), sum(s.structures.values())) for s in manifest.states]
    return "; ".join(f"{text}: {count}" for text, count in found)


def _reasons(manifest: Manifest) -> str:
    """Numbers of dropped structures, by reason."""
    return ", ".join(f"{count} {reason}{_apart(reason, manifest)}" for reason, count in manifest.dropped.items())


def _further_counts(labels: Mapping[str, int]) -> list[str]:
    return [f"{name} {count}" for name, count in labels.items() if name not in BUILT_IN]


def _apart(reason: str, manifest: Manifest) -> str:
    """The largest difference between the labels of equal geometries."""
    found = manifest.conflicts
    if reason != CONFLICT or found is None:
        return ""
    forces = "" if found.forces is None else f" and {found.forces:.2g} eV/Å"
    return f" (up to {found.energy:.2g} eV/atom{forces} apart)"


def print_look(console: Console, found: Mapping[str, Any]) -> None:
    """Prints the summary of an original file (`ramify.sources.look.Look`)."""
    say(found["path"], console, "bold")
    for label, text in _looked(found):
        style = "yellow" if label == "check" else None
        for line in _hanging(console, label, text):
            say(line, console, style)
    say("recipe to copy:\n" + found["recipe"], console)


def _looked(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and text of each fact of a file."""
    yield "format", found["format"] + (f", {found['theory']}" if found["theory"] else "")
    if found["units"]:
        yield "units", found["units"]
    keys = [f"{name}: {kind}" for name, kind in found["keys"].items() if not name.startswith("unit of ")]
    for index, text in enumerate(keys):
        yield "" if index else "keys", text
    if found["structures"]:
        low, high = found["atoms"]
        periodic = {0: "none periodic", found["structures"]: "all periodic"}
        yield (
            "structures",
            (
                f"{found['structures']}, "
                + ("the whole file" if found["whole"] else "the beginning of the file")
                + "; "
                f"{low if low == high else f'{low} to {high}'} atoms, "
                f"{periodic.get(found['periodic'], str(found['periodic']) + ' periodic')}, {found['groups']} "
                + ("group" if found["groups"] == 1 else "groups")
            ),
        )
        yield "elements", " ".join(found["elements"])
        yield "labels", ", ".join(f"{kind} {count}" for kind, count in found["labels"].items())
        for index, (state, count) in enumerate(found["states"].items()):
            yield "" if index else "states", f"{state}: {count} structures"
        low, high = found["energy_per_atom"]
        force = "" if found["max_force"] is None else f"; largest force {found['max_force']:.4g} eV/Å"
        yield "energies", f"{low:.4f} to {high:.4f} eV/atom{force}"
    for doubt in found["doubts"]:
        yield "check", doubt


def _hanging(console: Console, label: str, text: str) -> list[str]:
    """Lines of a labelled text, wrapped at words with an indent on a terminal, else one line."""
    lines = [f"{label:<11} {line}" if index == 0 else f"{'':11} {line}" for index, line in enumerate(text.split("\n"))]
    if not console.is_terminal:
        return lines
    wrapped = (
        textwrap.wrap(
            line, max(40, console.width), subsequent_indent=12 * " ", break_long_words=False, break_on_hyphens=False
        )
        for line in lines
    )
    return [part for line in wrapped for part in line]


def errors_table(report: Mapping[str, Any]) -> Table:
    """Errors before a fine-tuning, after it if it has ended (`finetune.json`), and of the trivial predictor."""
    ended = report["after"] is not None
    title = "before and after fine-tuning" if ended else "before the first step"
    table = Table(title=f"Errors on the {report['split']} splits {title}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("branch", "dataset", "trained"):
        table.add_column(heading)
    for label in ("E eV/atom", "F eV/Å"):
        for when in ("before", "after") if ended else ("before",):
            table.add_column(f"{label} {when}", justify="right")
        table.add_column("trivial", justify="right")
    after = {(row["branch"], row["dataset"]): row for row in report["after"] or ()}
    for row in report["before"]:
        cells = []
        for label in ("energy_mae", "forces_mae"):
            later = (after[row["branch"], row["dataset"]],) if ended else ()
            cells += [_error(entry[label]) for entry in (row, *later)] + [_error(row[f"trivial_{label}"])]
        table.add_row(row["branch"], row["dataset"], "yes" if row["trained"] else "no", *cells)
    return table


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_plan(console: Console, plan: Mapping[str, Any]) -> None:
    """Prints a plan made by `ramify.planning.report`: datasets, ranks, placements considered, reason for the choice."""
    for table in (_datasets_table(plan), _ranks_table(plan), _considered_table(plan)):
        console.print(table)
    model, machine = plan["model"], plan["machine"]
    ema = ", averaged weights" if plan["rows"][0]["bytes"]["averages"] else ""
    lines = [
        f"placement: [bold]{plan['placement']['kind']}[/bold], {plan['placement']['reason']}",
        f"imbalance: the busiest rank has {100 * plan['imbalance']:.1f} % more work than the mean",
        f"regime: {plan['regime']['text']}",
        f"{model['bytes_per_parameter']:.4g} bytes per parameter: weight, gradient, moments of the optimizer{ema}; "
        f"{model['gradient_bytes_per_parameter']} all-reduced",
        f"times assume parallel.machine: {machine['tflops']:g} TFLOP/s, {machine['bandwidth']:g} GB/s, "
        f"{machine['latency']:g} µs",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    for text in plan["warnings"]:
        warned(text, console)
    for text in plan["remedies"]:
        say(f"would fit: {text}", console)


def _datasets_table(plan: Mapping[str, Any]) -> Table:
    table = Table(title=f"Training data, {plan['batch']} structures per step", title_justify="left")
    for heading in ("dataset", "structures", "atoms each", "edges each", "known from"):
        table.add_column(heading, justify="left" if heading in ("dataset", "known from") else "right")
    for name, size in plan["datasets"].items():
        table.add_row(name, f"{size['structures']:,}", f"{size['atoms']:.1f}", f"{size['edges']:.1f}", size["source"])
    return table


def _ranks_table(plan: Mapping[str, Any]) -> Table:
    limit = f", {plan['memory_gb']:g} GB each" if plan["memory_gb"] else ""
    shard = ", encoder sharded" if plan["shard"] == "encoder" else ""
    table = Table(title=f"{plan['ranks']} ranks{limit}{shard}; per rank and step", title_justify="left")
    table.add_column("ranks")
    table.add_column("branches", overflow="fold")
    for heading in ("parameters", "states MB", "step MB", "all-reduced MB", "structures", "edges", "TFLOP"):
        table.add_column(heading, justify="right")
    for row in plan["rows"]:
        sizes = row["bytes"]
        during = sizes["activations"] + sizes["working"]
        table.add_row(
            _ranges(row["ranks"]),
            " ".join(row["branches"]),
            f"{row['parameters']:,}",
            f"{(sum(sizes.values()) - during) / 1e6:,.1f}",
            f"{during / 1e6:,.1f}",
            " + ".join(f"{amount / 1e6:.1f}" for amount in row["traffic"].values()) or "0",
            f"{row['structures']:.4g}",
            f"{row['edges']:,.0f}",
            f"{row['operations'] / 1e12:.3g}",
        )
    return table


def _considered_table(plan: Mapping[str, Any]) -> Table:
    table = Table(title="Placements considered", title_justify="left")
    table.add_column("placement")
    for heading in ("predicted ms", "fullest rank GB", "all-reduced MB", "imbalance %", "fits"):
        table.add_column(heading, justify="right")
    for option in plan["considered"]:
        table.add_row(
            option["kind"],
            f"{1e3 * option['seconds']:.4g}",
            f"{option['memory'] / 1e9:.3f}",
            f"{option['traffic'] / 1e6:.1f}",
            f"{100 * option['imbalance']:.1f}",
            "yes" if option["fits"] else "no",
        )
    return table


def _ranges(ranks: list[int]) -> str:
    """`0-3 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return " ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _slope(slope: float | None) -> str:
    if slope is None:
        return "too few pairs"
    return f"{slope:.3f}" if ACCEPTED[0] <= slope <= ACCEPTED[1] else f"{slope:.3f} ! expected 1"


def percent(label: str, found: float | None, trivial: float | None) -> str:
    """`-` where the label or the prediction is missing, or the trivial error is too small to compare with."""
    if found is None or trivial is None or not measurable(label, trivial):
        return "-"
    return f"{100 * found / trivial:.0f}"
