"""The tables of a study as Markdown, LaTeX and terminal text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ramify.report.table_format import MARK, MARKED, format_error
from ramify.study.results.tables import Cell, Measured, Table, Tables

NONE = "—"


def number(measured: Measured | None) -> str:
    """Mean, and ± standard deviation over seeds where there are several."""
    if measured is None:
        return NONE
    return format_error(measured.mean) + ("" if measured.spread is None else f" ± {spread(measured)}")


def spread(measured: Measured) -> str:
    """The standard deviation over seeds with as many decimals as the mean."""
    mean = format_error(measured.mean)
    if measured.spread is None or not math.isfinite(measured.spread) or "e" in mean:
        return format_error(measured.spread or 0.0)
    return f"{measured.spread:.{len(mean.partition('.')[2])}f}"


def trivial_texts(table: Table) -> list[str]:
    """The last row."""
    values = [table.trivial[dataset] for dataset in table.datasets]
    return ["no label" if value is None else format_error(value) for value in values]


def legend(tables: Tables) -> list[str]:
    """Explanations below the tables."""
    cells = [cell for table in tables.tables for row in table.rows for cell in row.cells.values()]
    marks = [MARKED] if any(cell.no_better_than_trivial for cell in cells) else []
    return [*marks, *tables.footnotes]


def markdown(tables: Tables, verdict: Sequence[str]) -> str:
    """The tables as GitHub-flavoured Markdown, with the conclusion on top."""
    parts = [*verdict, *(_markdown_table(table) for table in tables.tables), "  \n".join(legend(tables))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    def cell_text(cell: Cell) -> str:
        text = (f"{MARK} " if cell.no_better_than_trivial else "") + number(cell.error)
        text = f"**{text}**" if cell.best else text
        return text if cell.refitted is None else f"{text} (refitted {number(cell.refitted)})"

    rows = [[row.model, *(cell_text(row.cells[d]) for d in table.datasets)] for row in table.rows]
    lines = [["", *table.datasets], *rows, ["*Trivial*", *trivial_texts(table)]]
    texts = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    rule = "|---|" + "---:|" * len(table.datasets)
    return "\n".join([f"**{table.title}**", "", texts[0], rule, *texts[1:]])


ESCAPES = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
"""Characters of LaTeX that need more than a backslash before them, or that such a text contains."""


def latex(tables: Tables) -> str:
    """The tables for LaTeX, with the packages `booktabs` and `inputenc`; refitted errors follow in parentheses."""
    notes = "\n".join(f"% {line}" for line in legend(tables))
    return "\n\n".join(_latex_table(table) for table in tables.tables) + f"\n\n{notes}\n"


def latex_number(measured: Measured | None) -> str:
    """As `number`, for LaTeX."""
    return number(measured).replace("±", r"$\pm$").replace(NONE, "--")


def _latex_table(table: Table) -> str:
    def cell_text(cell: Cell) -> str:
        text = latex_number(cell.error)
        text = rf"\textbf{{{text}}}" if cell.best else text
        return text if cell.refitted is None else f"{text} ({latex_number(cell.refitted)})"

    rows = [[_escaped(row.model), *(cell_text(row.cells[d]) for d in table.datasets)] for row in table.rows]
    trivial = ["Trivial", *map(_escaped, trivial_texts(table))]
    caption = _escaped(table.title.split(". ", 1)[1]).replace("Å", r"\AA{}")
    lines = [
        r"\begin{table}",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.datasets)}}}",
        r"\toprule",
        " & ".join(["", *map(_escaped, table.datasets)]) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\midrule",
        " & ".join(trivial) + r" \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(c, f"\\{c}" if c in "&%$#_" else c) for c in text)


def render(tables: Tables, console: Console, *, short: bool = False) -> None:
    """Prints the tables; one that is too wide for the terminal is split. `short`: without footnotes and refitted
    errors."""
    for table in tables.tables:
        shown = _without_refitted(table) if short else table
        console.print(Text(table.title, "bold"))
        for datasets in _fitting(shown, console.width):
            console.print(_terminal_table(shown, datasets))
            console.print()
    for line in () if short else legend(tables):
        console.print(Text(line, "dim"), soft_wrap=False)


def _without_refitted(table: Table) -> Table:
    cells = [{d: replace(cell, refitted=None) for d, cell in row.cells.items()} for row in table.rows]
    return replace(table, rows=tuple(replace(row, cells=c) for row, c in zip(table.rows, cells, strict=True)))


def _cell_lines(cell: Cell) -> list[str]:
    """The lines of a cell: its error, and the refitted one below."""
    mark = f"{MARK} " if cell.no_better_than_trivial else ""
    return [mark + number(cell.error), *([f"refitted {number(cell.refitted)}"] if cell.refitted else [])]


def _terminal_table(table: Table, datasets: Sequence[str]) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column("model", no_wrap=True)
    for dataset in datasets:
        shown.add_column(Text(dataset), justify="right", no_wrap=True)
    for row in table.rows:
        shown.add_row(Text(row.model), *(_rich_cell(row.cells[dataset]) for dataset in datasets))
    shown.add_section()
    known = dict(zip(table.datasets, trivial_texts(table), strict=True))
    shown.add_row(*(Text(text, "dim") for text in ("Trivial", *(known[dataset] for dataset in datasets))))
    return shown


def _rich_cell(cell: Cell) -> Text:
    first, *more = _cell_lines(cell)
    text = Text(first, "bold green" if cell.best else "red" if cell.no_better_than_trivial else "")
    for line in more:
        text.append("\n" + line, "dim")
    return text


def _fitting(table: Table, width: int) -> list[list[str]]:
    """The columns in groups that fit the terminal together with the column of models."""
    left = max(len(row.model) for row in table.rows)
    groups: list[list[str]] = [[]]
    used = left
    known = dict(zip(table.datasets, trivial_texts(table), strict=True))
    for dataset in table.datasets:
        lines = [line for row in table.rows for line in _cell_lines(row.cells[dataset])]
        needed = 3 + max(len(text) for text in (dataset, known[dataset], *lines))
        if groups[-1] and used + needed > width:
            groups.append([])
            used = left
        groups[-1].append(dataset)
        used += needed
    return groups
