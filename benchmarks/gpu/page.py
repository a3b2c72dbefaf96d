"""The results of `benchmarks/gpu.sh` as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "machine": "Machine",
    "tests": "Tests of placement and synchronisation",
    "steps": "Training steps",
    "edges": "Neighbour lists",
    "loader": "Loader",
    "calculator": "Calculator",
    "memory": "Memory against the plan",
    "ranks": "Two ranks on one GPU",
}


def page(results: Mapping[str, Mapping[str, Any]], *, dry: bool) -> str:
    """One section per part: a table of its `rows`, then its other values."""
    lines = ["# Measurements on a GPU", ""]
    if dry:
        lines += ["A dry run on a CPU: the figures only show that every part runs.", ""]
    for name, found in results.items():
        lines += [f"## {TITLES[name]}", ""]
        if rows := found.get("rows"):
            lines += [*table(rows), ""]
        lines += [f"- {key}: {shown(value)}" for key, value in found.items() if key != "rows"]
        lines.append("")
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a table; columns in the order of their first use."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(shown(row.get(column, "")) for column in columns) + " |" for row in rows]


def shown(value: Any) -> str:
    """A value in a cell: numbers with three significant digits."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")
