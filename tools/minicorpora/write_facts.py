"""Writes the numbers of the five files into the READMEs of the corpora, after the files have changed.

    python tools/minicorpora/write_facts.py

Rows of tables and the two figures of the slope are replaced; sentences are not. It prints the new entries of `HELD` and
`ELEMENTS` in `tests/corpora.py`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from check_files import ROOT, SYMBOLS


def replaced(pattern: str, new: str, text: str) -> str:
    """`text` with the only match of `pattern` replaced.

    Raises:
        ValueError: there is no match, or more than one.
    """
    found, count = re.subn(pattern, lambda _: new, text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{pattern!r} matches {count} times")
    return found


def page(text: str, report: dict[str, Any]) -> str:
    """The README of a corpus with the numbers of a report of `check_files.py`."""
    elements, (low, high) = report["elements"], report["energy_per_atom"]
    smallest, largest = report["atoms_range"]
    forces = f"median {report['largest_force_median']:.3f} eV/Å, at most {report['largest_force']:.2f} eV/Å"
    text = replaced(r"(?<=`, )[\d.]+ MB(?= \|$)", f"{report['bytes'] / 1e6:.2f} MB", text)
    text = replaced(r"(?<=^\| structures \| )\d+", str(report["structures"]), text)
    text = replaced(r"(?<=^\| systems \| )\d+", str(report["systems"]), text)
    text = replaced(r"(?<=^\| atoms per structure \| )[^|]+(?= \|)", f"{smallest} to {largest}", text)
    text = replaced(r"(?<=^\| elements \| )[^|]+(?= \|)", f"{len(elements)}: {' '.join(elements)}", text)
    text = replaced(r"(?<=^\| energy per atom \| )[^|]+(?= \|)", f"{low:.3f} to {high:.3f} eV", text)
    text = replaced(r"(?<=^\| largest force component of a structure \| )[^|]+(?= \|)", forces, text)
    text = replaced(r"(?<=Net force at most )\S+", f"{report['net_force']:.1e}", text)
    text = replaced(r"(?<=closest pair )[\d.]+", f"{report['closest_pair']:.2f}", text)
    text = replaced(r"(?<=energy-force slope )[\d.]+", f"{report['slope']:.4f}", text)
    return replaced(r"\d+(?= pairs)", str(report["pairs"]), text)


def overview(text: str, reports: list[dict[str, Any]]) -> str:
    """The README of all corpora."""
    for report in reports:
        row = re.search(rf"^\| \[{report['corpus']}\].*$", text, re.MULTILINE)
        if row is None:
            raise ValueError(f"no row of {report['corpus']}")
        cells = [cell.strip() for cell in row[0].strip("|").split("|")]
        kind = cells[5].split(maxsplit=1)[1]
        smallest, largest = report["atoms_range"]
        sizes = [f"{smallest} to {largest}", str(len(report["elements"]))]
        cells[4:] = [str(report["structures"]), f"{report['systems']} {kind}", *sizes]
        text = text.replace(row[0], f"| {' | '.join(cells)} |")
    structures, size = (sum(report[key] for report in reports) for key in ("structures", "bytes"))
    elements = set().union(*(report["elements"] for report in reports))
    held = f"{structures} structures, {len(elements)} elements, {size / 1e6:.1f} MB"
    return replaced(r"\d+ structures, \d+ elements, [\d.]+ MB", held, text)


def main() -> None:
    """Checks the files, writes the READMEs and prints what the tests compare."""
    checked = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("check_files.py"))], stdout=subprocess.PIPE, text=True, check=True
    )
    reports = [json.loads(line) for line in checked.stdout.splitlines()]
    for report in reports:
        readme = ROOT / report["corpus"] / "README.md"
        readme.write_text(page(readme.read_text(encoding="utf-8"), report), encoding="utf-8")
        numbers = ", ".join(str(report[key]) for key in ("structures", "systems", "atoms"))
        smallest, largest = report["atoms_range"]
        print(f'    "{report["corpus"]}": Held({numbers}, {smallest}, {largest}, {report["largest_force"]:.3f}),')
        print(f'    "{report["corpus"]}": "{" ".join(sorted(report["elements"], key=SYMBOLS.index))}",')
    (ROOT / "README.md").write_text(overview((ROOT / "README.md").read_text(encoding="utf-8"), reports), "utf-8")


if __name__ == "__main__":
    main()
