"""Writes the results of a study: tables as Markdown, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ramify.files import write_json, write_whole
from ramify.store.manifest import Manifest, read_manifest
from ramify.study.results.costs import Cost, costs_of
from ramify.study.results.tables import Tables, Trained, make_tables, trained_runs
from ramify.study.results.text import latex, markdown
from ramify.study.results.verdict import conclusions
from ramify.study.table import Study


@dataclass(frozen=True)
class Outcome:
    """Everything that is known about a study.

    Attributes:
        runs: the evaluated runs, in the order of the tables.
        tables: Tables 1 and 2.
        verdict: the sentences that they support.
        costs: of every model.
        manifests: of the stores of all datasets.
    """

    runs: list[Trained]
    tables: Tables
    verdict: list[str]
    costs: list[Cost]
    manifests: Mapping[str, Manifest]

    def to_dict(self) -> dict[str, Any]:
        """Tables, sentences and costs as plain data."""
        return {**self.tables.to_dict(), "verdict": self.verdict, "costs": [asdict(cost) for cost in self.costs]}


def manifests_of(study: Study) -> dict[str, Manifest]:
    """The manifests of the stores of all datasets.

    Raises:
        RamifyError: a store is missing or damaged.
    """
    return {name: read_manifest(Path(study.recipe.stores) / name) for name in study.datasets}


def outcome_of(study: Study) -> Outcome | None:
    """The results of the models that are done; None if there are none."""
    if not any(task.state == "done" for task in study.tasks):
        return None
    runs, manifests = trained_runs(study), manifests_of(study)
    tables = make_tables(runs, manifests)
    if missing := [task.name for task in study.tasks if task.state != "done"]:
        left_out = f"Not in the tables, as they are not trained to the end or not evaluated: {', '.join(missing)}."
        tables = replace(tables, footnotes=(*tables.footnotes, left_out))
    return Outcome(runs, tables, conclusions(tables), costs_of(runs), manifests)


def write_tables(study: Study, outcome: Outcome) -> None:
    """Writes tables.md, tables.tex and results.json into the folder of the study."""
    write_whole(study.path / "tables.md", markdown(outcome.tables, outcome.verdict))
    write_whole(study.path / "tables.tex", latex(outcome.tables))
    write_json(study.path / "results.json", outcome.to_dict())
