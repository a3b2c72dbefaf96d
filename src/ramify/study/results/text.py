"""The tables of a study as Markdown, LaTeX and terminal text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ramify.report.table_format import MARK, MARKED, format_error, markdown_table, terminal_tables
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

    rows = [(row.model, [cell_text(row.cells[d]) for d in table.datasets]) for row in table.rows]
    return markdown_table(table.title, table.datasets, rows, trivial_texts(table))


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
        rows = [(row.model, [_rich_cell(row.cells[d], short=short) for d in table.datasets]) for row in table.rows]
        console.print(Text(table.title, "bold"))
        for part in terminal_tables(table.datasets, rows, trivial_texts(table), console.width):
            console.print(part)
            console.print()
    for line in () if short else legend(tables):
        console.print(Text(line, "dim"), soft_wrap=False)


def _rich_cell(cell: Cell, *, short: bool) -> Text:
    """The error of a cell, and the refitted one below."""
    mark = f"{MARK} " if cell.no_better_than_trivial else ""
    text = Text(mark + number(cell.error), "bold green" if cell.best else "red" if mark else "")
    return text if short or not cell.refitted else text.append(f"\nrefitted {number(cell.refitted)}", "dim")
