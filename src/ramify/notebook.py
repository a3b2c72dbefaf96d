"""How objects show themselves in Jupyter: a title and a small table, as HTML."""

import html
from collections.abc import Iterable, Sequence


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a title; every text is escaped, and numbers have separators of thousands."""
    lines = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    return f"<table><caption>{_text(title)}</caption><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _text(cell: object) -> str:
    if cell is None:
        return "—"
    if isinstance(cell, int):
        return f"{cell:,}"
    return html.escape(f"{cell:.4g}" if isinstance(cell, float) else str(cell))
