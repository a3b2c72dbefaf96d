"""Loads recipes from files, from the package and from plain data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ramify.errors import RamifyError
from ramify.recipe.overrides import override, read_yaml
from ramify.recipe.recipe import Recipe
from ramify.recipe.validation_errors import mistakes

RECIPES = Path(__file__).parents[1] / "recipes"
"""Folder of the recipes of the package: `demo`, `paper`, and the benchmarks `five`, `acac` and `bpa3`."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file, or the name of a recipe of the package.
        overrides: `key.sub=value` pairs; values are YAML.

    Raises:
        RamifyError: no such file, not YAML, an unknown key (with the nearest known one) or an invalid value.
    """
    file = _find(path)
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RamifyError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RamifyError(
            f"{file} holds {type(content).__name__}, a recipe is a mapping of keys", fix="see recipes/demo.yaml"
        )
    for pair in overrides:
        override(content, pair)
    return parse_recipe(content, where=str(file))


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Validates a recipe given as plain data; error messages include `where`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [f"{where} is not a valid recipe:", *mistakes(error, Recipe)]
        raise RamifyError("\n  ".join(lines)) from None


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    packaged = RECIPES / f"{path}.yaml"
    if packaged.is_file():
        return packaged
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    raise RamifyError(f"no recipe at {path}", fix=f"give a YAML file or one of: {', '.join(known)}")
