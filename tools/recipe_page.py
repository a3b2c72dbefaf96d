"""Writes docs/recipe.md from the recipe's models: every key with its default, accepted values and docstring.

`python tools/recipe_page.py` writes the page; with `--check` it exits with status 1 where the page is out of date.
"""

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ramify.recipe import EncoderOptions, Recipe
from ramify.recipe.encoder import DEFAULT_KIND, KINDS, options_class
from ramify.sources.base import DatasetOptions
from ramify.sources.formats import formats

PAGE = Path(__file__).parents[1] / "docs/recipe.md"

INTRO = """\
# The recipe

After this page you can set every key of a recipe.

A recipe is a YAML file that defines a run. Every key has a default except `datasets`, `datasets.NAME.format` and
`datasets.NAME.path`. An unknown key is an error that names the nearest known one. Values are never changed after they
have been read; the run directory contains the recipe with all defaults.

Any key can be set on the command line after the recipe, as `key.sub=value`; the value is YAML:

```bash
ramify train own.yaml --run runs/wide model.encoder.width=256 'objective.weights={metals: 2.0}'
```

Paths of data files and the folder `stores` are relative to the working directory.

`tools/recipe_page.py` generates this page from the models in `src/ramify/recipe/` and `src/ramify/sources/`, and a test
compares the two: change a docstring there, then run the tool.
"""

DATASETS = """\
## `datasets`

A mapping from names to datasets. A name consists of letters, digits, `-` and `_`; it becomes the name of a folder and
of a branch. The keys in this table are common to all formats; each format has additional keys.
[Sources](sources.md) describes the formats and their pitfalls.
"""

Model = type[BaseModel]


def page() -> str:
    """The whole page."""
    parts = [INTRO, "## Top level", _about(Recipe), _table(Recipe), DATASETS, _table(DatasetOptions)]
    parts += _groups(DatasetOptions, "datasets.NAME")
    shown: set[Model] = set()
    for name, found in sorted(formats().items()):
        parts += [f"### `format: {name}`", _text(_docstrings(found.options).get("format", ""))]
        if found.theory:
            parts.append(f"Default level of theory (key `theory`): {found.theory}.")
        own = {k: field for k, field in found.options.model_fields.items() if k not in DatasetOptions.model_fields}
        parts.append(_table(found.options, own) if own else "No keys of its own.")
        for key, model in _nested(found.options):
            if key in own and model not in shown:
                shown.add(model)
                parts += [f"### `datasets.NAME.{key}`", _about(model), _table(model)]
    parts += _groups(Recipe, "")
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def undocumented() -> list[str]:
    """Keys without a docstring, as `Model.key`."""
    roots = [Recipe, DatasetOptions, *(found.options for found in formats().values())]
    roots += [options_class(kind) for kind in KINDS]
    models = roots + [nested for root in roots for _, nested in _all_nested(root, "")]
    missing: dict[str, None] = {}
    for model in models:
        written = _docstrings(model)
        for key, field in model.model_fields.items():
            if key not in written and _model_of(field) is None:
                missing[f"{model.__name__}.{key}"] = None
    return list(missing)


def _groups(model: Model, prefix: str) -> list[str]:
    """A part for each model inside `model`."""
    parts = []
    for key, nested in _all_nested(model, prefix):
        level = "###" if prefix else "##"
        parts += [f"{level} `{key}`", _about(nested), _table(nested)]
        if nested is EncoderOptions:
            parts += _encoders()
    return parts


def _encoders() -> list[str]:
    """A part for each kind of encoder."""
    parts = []
    for kind in KINDS:
        options = options_class(kind)
        own = {k: field for k, field in options.model_fields.items() if _is_own(options, k)}
        parts += [f"### `model.encoder.kind: {kind}`", _about(options)]
        parts.append(_table(options, own) if own else "No keys of its own.")
    return parts


def _is_own(options: Model, key: str) -> bool:
    """Whether a key is not common to all encoders, or has another default."""
    common = EncoderOptions.model_fields.get(key)
    return key != "kind" and (common is None or common.default != options.model_fields[key].default)


def _all_nested(model: Model, prefix: str) -> Iterator[tuple[str, Model]]:
    for key, nested in _nested(model):
        path = f"{prefix}.{key}" if prefix else key
        yield path, nested
        yield from _all_nested(nested, path)


def _nested(model: Model) -> Iterator[tuple[str, Model]]:
    for key, field in model.model_fields.items():
        found = _model_of(field)
        if found is not None:
            yield key, found


def _model_of(field: FieldInfo) -> Model | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _about(model: Model) -> str:
    """The docstring of a model."""
    return inspect.cleandoc(model.__doc__ or "")


def _table(model: Model, fields: dict[str, FieldInfo] | None = None) -> str:
    written = _docstrings(model)
    rows = ["| key | default | accepted | meaning |", "|---|---|---|---|"]
    for key, field in (fields or model.model_fields).items():
        nested = _model_of(field)
        if nested is not None:
            meaning = written.get(key) or (_about(nested).split("\n\n")[0] + " See below.")
            cells = [f"`{key}`", "see below", "keys", meaning]
        else:
            accepted = (
                ", ".join(map(_value, sorted(formats())))
                if key == "format"
                else ", ".join(map(_value, KINDS))
                if model is EncoderOptions and key == "kind"
                else _type(field.annotation, field.metadata)
            )
            default = _value(DEFAULT_KIND) if model is EncoderOptions and key == "kind" else _default(field)
            cells = [f"`{key}`", default, accepted, written.get(key, "")]
        rows.append("| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _docstrings(model: Model) -> dict[str, str]:
    """The docstring of each field in the source of a class and its base classes."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if field.target.id != "kind" or not issubclass(cls, EncoderOptions):  # narrowed, not redefined
                    found.pop(field.target.id, None)
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return _value(value) if value != "" else "empty"


def _type(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type in words, with its limits."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0], [*inside[1:], *metadata])
    if origin is Literal:
        return ", ".join(_value(v) for v in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part, metadata) for part in inside)
    if origin is list or (origin is tuple and inside[1:] == (...,)):
        return f"list of {_type(inside[0])}"
    if origin is tuple:
        return "[" + ", ".join(_type(part) for part in inside) + "]"
    if origin is dict:
        keys = _type(inside[0])
        return f"mapping from {'names' if inside[0] is str else keys} to {_type(inside[1])}"
    if annotation is bool:
        return "`true`, `false`"
    if annotation is type(None):
        return "`null`"
    if annotation in (int, float):
        return " ".join(["whole number" if annotation is int else "number", _limits(metadata)]).strip()
    if annotation is str:
        return "text"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "keys, see below"
    raise TypeError(f"no description for {annotation!r}")


def _value(value: Any) -> str:
    """A value in YAML on one line."""
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True, sort_keys=False).splitlines()[0]}`"


def _limits(metadata: list[Any] | tuple[Any, ...]) -> str:
    signs = ((annotated_types.Ge, "≥", "ge"), (annotated_types.Gt, ">", "gt"))
    signs += ((annotated_types.Le, "≤", "le"), (annotated_types.Lt, "<", "lt"))
    found = [
        f"{sign} {_number(getattr(m, name))}" for m in metadata for kind, sign, name in signs if isinstance(m, kind)
    ]
    return " and ".join(found)


def _number(value: float) -> str:
    """A number; large powers of two as powers."""
    exponent = int(value).bit_length() - 1
    return f"2^{exponent}" if value == 2**exponent > 10**6 else f"{value:g}"


def _text(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def main() -> int:
    """Writes or checks the page."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    if missing := undocumented():
        sys.stderr.write(f"keys without a docstring: {', '.join(missing)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
