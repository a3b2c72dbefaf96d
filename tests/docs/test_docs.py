"""The documentation: examples run, commands and paths exist, recipes are valid, the site builds."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
import yaml

from ramify import cli
from ramify.evaluate.results import Results
from ramify.recipe import load_recipe, parse_recipe
from tests.docs.pages import ROOT, Step, blocks, lines, printed, walk

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")] + DOCS
EXAMPLES = {"src/ramify/sources/formats/dimers.py"}
"""Files that a page asks the reader to imagine."""
pytestmark = pytest.mark.timeout(600)  # the tutorial takes about 20 s of one core, more where it is shared
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@dataclass(frozen=True)
class Walk:
    """The tutorial, done.

    Attributes:
        folder: where it was done.
        steps: its blocks, one after the other.
    """

    folder: Path
    steps: list[Step]


def commands(path: Path) -> list[list[str]]:
    """The arguments of every command `ramify ...` in the shell examples of a page."""
    split = [shlex.split(line, comments=True) for block in blocks(path) for line in lines(block)]
    return [words[1:] for words in split if words and Path(words[0]).name == "ramify"]


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """Follows the tutorial once, in a folder of its own."""
    folder = tmp_path_factory.mktemp("tutorial")
    return Walk(folder, walk("docs/tutorial.md", folder))


@pytest.mark.slow
def test_tutorial_prints_what_it_says(tutorial: Walk) -> None:
    """Every ```text block below a ```python block is that block's output."""
    shown = printed(tutorial.steps)
    assert len(shown) == 4
    for said, text in shown:
        assert said.strip() == text.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "stores", "datasets"),
    [
        ("docs/tutorial.md", "stores", ["metals", "molecules"]),
        ("docs/measurements.md", "demo-run-stores", ["ani1x", "qm7x", "transition1x", "mptrj", "alexandria"]),
    ],
)
def test_tables_of_prepared_data(tutorial: Walk, path: str, stores: str, datasets: list[str]) -> None:
    """The table that a page shows holds the counts and slopes of the stores."""
    (table,) = [block.text for block in blocks(ROOT / path) if "labels E/F/S" in block.text]
    cells = (re.split(r" {2,}", line.strip()) for line in table.splitlines())
    rows = [row for row in cells if len(row) == 6 and row[1].count(" / ") == 2]
    assert [row[0] for row in rows] == datasets
    for name, splits, elements, labels, slope, dropped in rows:
        manifest = json.loads((tutorial.folder / stores / name / "manifest.json").read_text(encoding="utf-8"))
        assert splits == " / ".join(str(manifest["splits"][s]["structures"]) for s in ("train", "val", "test"))
        assert elements == str(len(manifest["elements"]))
        assert labels == " / ".join(str(manifest["labels"][k]) for k in ("energy", "forces", "stress"))
        assert float(slope) == pytest.approx(manifest["consistency"]["slope"], abs=6e-4)
        assert dropped == str(sum(manifest["dropped"].values()))
        reasons = ", ".join(f"{n} {why}" for why, n in manifest["dropped"].items())
        assert not reasons or f"{name}: dropped {reasons}" in table


def test_tutorial_trains_and_compares(tutorial: Walk) -> None:
    """Both runs err less than the trivial predictor in all that they learn; the tables name them as the page does."""
    for run, branches in (("both", {"metals", "molecules"}), ("shared", {"shared"})):
        results = Results.open(tutorial.folder / "runs" / run)
        assert set(results.evaluation.branches) == branches
        for dataset in ("metals", "molecules"):
            row, trivial = results.own_row(dataset), results.evaluation.trivial_of(dataset)
            assert row is not None
            assert row.energy_mae < 0.9 * trivial.energy_mae
            assert row.forces_mae < 0.8 * trivial.forces_mae
    tables = next(said for block, said, _ in tutorial.steps if "ramify tables runs/metals" in block.text)
    assert {"Model-metals", "Baseline-All", "MTL-All", "Trivial"} <= set(tables.split())
    assert "MTL-All" in (tutorial.folder / "runs/both/report.html").read_text(encoding="utf-8")
    assert (tutorial.folder / "demo-run/report.html").is_file()


def test_tutorial_resumes_where_it_stopped(tutorial: Walk) -> None:
    said = next(said for block, said, _ in tutorial.steps if "--resume" in block.text)
    assert "continuing at step 240 of 240" in said


@page
def test_commands_exist(path: Path) -> None:
    """Every verb and option in the shell examples exists; overrides are keys of a recipe."""
    verbs = typer.main.get_command(cli.app).commands
    for words in commands(path):
        verb, arguments = verbs.get(words[0]), words[1:]
        if arguments and arguments[0] in getattr(verb, "commands", {}):  # a verb of a group, e.g. `bench scale`
            verb, arguments = verb.commands[arguments[0]], arguments[1:]
        assert verb is not None, f"{path.name}: ramify {' '.join(words)}"
        options = {name for parameter in verb.params for name in parameter.opts} | {"--debug", "--help"}
        assert {a for a in arguments if a.startswith("--")} <= options, f"{path.name}: ramify {' '.join(words)}"
        overrides = [a for a in arguments if re.match(r"[a-z_.]+=", a)]
        for override in overrides:
            if not override.startswith(("datasets", "objective.weights")):  # those need the reader's own names
                load_recipe("five", [override])


@page
def test_recipes_are_valid(path: Path) -> None:
    for block in blocks(path):
        content = yaml.safe_load(block.text) if block.language == "yaml" else None
        if isinstance(content, dict) and "datasets" in content:
            recipe = parse_recipe(content, where=path.name)
            assert set(recipe.datasets) == set(content["datasets"])


@page
def test_paths_exist(path: Path) -> None:
    """Files of the source tree that a page names in backquotes are there, and so are the tests within them."""
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|tools|docs|recipes|benchmarks)/[\w./-]*\w)(?:::\w+)?`", text)
    for name in set(named) - EXAMPLES:
        assert (ROOT / name).exists(), f"{path.name} names {name}"
    for name, test in re.findall(r"`(tests/[\w./]+\.py)::(\w+)`", text):
        assert f"def {test}(" in (ROOT / name).read_text("utf-8"), f"{path.name} names {test} of {name}"


@page
def test_links_within_the_source_tree(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_recipe_page_is_up_to_date() -> None:
    tool = runpy.run_path(str(ROOT / "tools/recipe_page.py"))
    made = tool["page"]()
    assert tool["undocumented"]() == []
    assert "| `warmup_steps` | `200` | whole number ≥ 0 |" in made
    assert "| `clip` | `10` | number > 0 or `null` |" in made
    assert (ROOT / "docs/recipe.md").read_text(encoding="utf-8") == made, "run: python tools/recipe_page.py"


def test_site_builds_without_warnings(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")} - {"404"}
    assert pages == {path.stem for path in DOCS}
    outside = re.compile(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)')
    for made in (tmp_path / "site").glob("*.html"):
        assert not outside.search(made.read_text(encoding="utf-8")), f"{made.name} loads something from elsewhere"


@pytest.mark.parametrize(
    ("figure", "page", "head", "columns"),
    [
        ("peers", "step.md", "training step, s", ("training step, s", "memory of a step, MB")),
        ("scaling", "scaling.md", "times one rank", ("structures/s",)),
        ("encoders", "encoders.md", "minutes of one core", ("metric",)),
    ],
)
def test_figures_show_the_numbers_of_their_tables(figure: str, page: str, head: str, columns: tuple[str, ...]) -> None:
    """If this fails, a table was changed: run `python tools/docs_figures.py`."""
    rows = runpy.run_path(str(ROOT / "tools/docs_figures.py"))["table"](page, head)
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", (ROOT / f"docs/images/{figure}.svg").read_text(encoding="utf-8"))
    words = " ".join(shown).split()
    for column in columns:
        assert len(rows) > 5
        assert not [row[column] for row in rows if row[column] not in words]


@pytest.mark.slow
def test_versions_of_the_site(tmp_path: Path) -> None:
    """`mike` adds a version with its alias to the branch gh-pages, beside an earlier one."""
    for name in ("docs", "src", "mkdocs.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    people = {
        f"GIT_{who}_{what}": "someone@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(*command: str) -> str:
        environment = os.environ | people | {"PATH": path}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("git", "init", "--quiet", "--initial-branch=main")
    run("git", "commit", "--quiet", "--allow-empty", "--message=first")
    run("mike", "deploy", "--update-aliases", "0.0", "latest")
    run("mike", "deploy", "--update-aliases", "0.1", "latest")
    assert run("mike", "list").splitlines() == ["0.1 [latest]", "0.0"]
    assert run("git", "rev-parse", "gh-pages:latest") == run("git", "rev-parse", "gh-pages:0.1")
    assert "Ramify" in run("git", "show", "gh-pages:0.0/index.html")
