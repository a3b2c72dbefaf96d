"""The search space: recipe keys with ranges and choices, read from YAML and checked against the recipe."""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial
from pydantic import Field, ValidationError

from ramify.errors import RamifyError, nearest
from ramify.recipe import RECIPES, parse_recipe
from ramify.recipe.base import Keys
from ramify.recipe.encoder import options_class
from ramify.recipe.overrides import assign, read_yaml
from ramify.recipe.validation_errors import mistakes

SPACES = RECIPES / "spaces"
"""Spaces of the package, by name."""
KIND = "model.encoder.kind"
SAMPLING = "train.sampling"
LARGEST_GRID = 100_000
"""Configurations up to which a finite space is counted."""


class Entry(Keys):
    """One key of a space: a range (`low`, `high`) or `choices`."""

    low: int | float | None = None
    """Smallest value. The key takes whole numbers where `low`, `high` and `step` are whole numbers."""
    high: int | float | None = None
    """Largest value, included."""
    log: bool = False
    """Whether values are distributed uniformly in their logarithm."""
    step: int | float | None = Field(None, gt=0)
    """Distance between values of a range, from `low` on."""
    choices: list[Any] | None = None
    """Accepted values, of any type."""
    when: dict[str, Any] = Field({})
    """The key is searched only where these keys of the space have this value, or one of a list of values."""
    also: list[str] = Field([])
    """Recipe keys that get the same value."""


@dataclass(frozen=True)
class Key:
    """A checked entry.

    Attributes:
        name: dotted path of the recipe key.
        entry: as written.
        distribution: for Optuna; choices that Optuna cannot represent are JSON texts.
    """

    name: str
    entry: Entry
    distribution: BaseDistribution

    def suggest(self, trial: Trial) -> Any:
        """The value of this key for a trial of Optuna."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.name, d.choices)
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.name, d.low, d.high, step=d.step, log=d.log)
        assert isinstance(d, FloatDistribution)
        return trial.suggest_float(self.name, d.low, d.high, step=d.step, log=d.log)

    def decoded(self, value: Any) -> Any:
        """The value for the recipe of a value of Optuna."""
        if self.entry.choices is None:
            return value
        return next(choice for choice in self.entry.choices if _label(choice) == value)

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether the key is searched, given the values of earlier keys."""
        return all(key in values and values[key] in _listed(accepted) for key, accepted in self.entry.when.items())

    def probes(self) -> list[Any]:
        """Values that together show whether the recipe accepts all: every choice; both ends and one between them."""
        if self.entry.choices is not None:
            return self.entry.choices
        d = self.distribution
        assert isinstance(d, IntDistribution | FloatDistribution)
        inside = d.low + (d.step or 0.37 * (d.high - d.low))
        return [d.low, inside, d.high]

    def grid(self) -> list[Any] | None:
        """All values, where their number is finite."""
        if self.entry.choices is not None:
            return self.entry.choices
        d = self.distribution
        assert isinstance(d, IntDistribution | FloatDistribution)
        return None if d.step is None else [d.low + i * d.step for i in range(round((d.high - d.low) / d.step) + 1)]


@dataclass(frozen=True)
class Space:
    """A search space over a recipe.

    Attributes:
        content: as written, as plain data.
        keys: in the order of the file; conditions refer to earlier keys.
        recipe: plain data of the recipe; a trial replaces the keys of the space.
    """

    content: dict[str, Any]
    keys: tuple[Key, ...]
    recipe: dict[str, Any]

    def suggest(self, trial: Trial) -> None:
        """Suggests values for all keys that apply; `trial.params` then has them."""
        values: dict[str, Any] = {}
        for key in self.keys:
            if key.applies(values):
                values[key.name] = key.decoded(key.suggest(trial))

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Values for the recipe of the parameters of a trial of Optuna."""
        return {key.name: key.decoded(params[key.name]) for key in self.keys if key.name in params}

    def distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Distributions of the parameters of a trial of Optuna."""
        return {key.name: key.distribution for key in self.keys if key.name in params}

    def trial_recipe(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe with the values of a trial, as plain data.

        Keys of the recipe's encoder that another kind of encoder does not have are left out.

        Raises:
            RamifyError: a value cannot be set.
        """
        content = copy.deepcopy(self.recipe)
        if KIND in values and values[KIND] != content["model"]["encoder"]["kind"]:
            options = options_class(values[KIND]).model_fields
            encoder = content["model"]["encoder"]
            content["model"]["encoder"] = {name: value for name, value in encoder.items() if name in options}
        named = {key.name: key for key in self.keys}
        for name, value in values.items():
            for path in (name, *named[name].entry.also):
                if path.startswith(f"{SAMPLING}."):
                    _sampling_by_dataset(content, path)
                assign(content, path, value)
        return content

    @cached_property
    def size(self) -> int | None:
        """Number of configurations; None where it is infinite or above `LARGEST_GRID`."""
        if any(key.grid() is None for key in self.keys):
            return None
        found = 0
        for _ in self._configurations({}, 0):
            found += 1
            if found > LARGEST_GRID:
                return None
        return found

    def _configurations(self, values: dict[str, Any], at: int) -> Iterator[dict[str, Any]]:
        if at == len(self.keys):
            yield values
            return
        key = self.keys[at]
        for value in (key.grid() or ()) if key.applies(values) else (None,):
            yield from self._configurations(values | ({key.name: value} if key.applies(values) else {}), at + 1)


def read_space(path: str | Path, recipe: Mapping[str, Any]) -> Space:
    """Reads a space and checks every key against the recipe.

    Args:
        path: a YAML file, or the name of a space of the package.
        recipe: plain data of a valid recipe.

    Raises:
        RamifyError: no such file, not YAML, or an entry that is not valid: with the key, the value and the fix.
    """
    file = Path(path)
    if not file.is_file():
        file = SPACES / f"{path}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in SPACES.glob("*.yaml")))
        raise RamifyError(f"--space: no space at {path}", fix=f"give a YAML file or one of: {known}")
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RamifyError(f"{file} is not valid YAML: {error}") from None
    return make_space(content, recipe, str(file))


def make_space(content: Any, recipe: Mapping[str, Any], where: str) -> Space:
    """A space from plain data; see `read_space`. Errors include `where`."""
    if not isinstance(content, dict) or not content:
        raise RamifyError(
            f"{where} holds {type(content).__name__}; a space is a mapping of recipe keys",
            fix="e.g. optimizer.lr: {low: 1.0e-4, high: 1.0e-2, log: true}",
        )
    keys: dict[str, Key] = {}
    for name, written in content.items():
        key = _key(str(name), written, where)
        _check_conditions(key, keys, where)
        keys[key.name] = key
    space = Space(dict(content), tuple(keys.values()), dict(recipe))
    for key in space.keys:
        _check_values(space, key, where)
    return space


def _key(name: str, written: Any, where: str) -> Key:
    """One entry without regard to others."""
    if isinstance(written, list):
        written = {"choices": written}
    if not isinstance(written, dict):
        _refuse(where, name, written, "accepted are a range {low, high} or a list of choices", "e.g. [1, 2, 4]")
    try:
        entry = Entry.model_validate(written)
    except ValidationError as error:
        lines = mistakes(error, Entry, f"{name}: ")
        fix = f"write dotted paths such as optimizer.lr, each with a list or with {', '.join(Entry.model_fields)}"
        raise RamifyError("\n  ".join([f"{where} is not a valid space:", *lines]), fix=fix) from None
    ends = (entry.low, entry.high)
    if (entry.choices is None) == (ends == (None, None)) or (None in ends and ends != (None, None)):
        _refuse(where, name, written, "needs both low and high, or choices", "write {low: 2, high: 6} or [2, 4, 6]")
    if entry.choices is not None:
        return Key(name, entry, _categorical(where, name, entry))
    return Key(name, entry, _range(where, name, entry))


def _categorical(where: str, name: str, entry: Entry) -> BaseDistribution:
    choices = entry.choices or []
    labels = [_label(choice) for choice in choices]
    if not choices or any(label in labels[:i] for i, label in enumerate(labels)):
        _refuse(where, name, choices, "choices must differ, and there must be one", "list every value once")
    if entry.log or entry.step is not None:
        _refuse(where, name, choices, "log and step belong to a range", "remove them")
    return CategoricalDistribution(labels)


def _range(where: str, name: str, entry: Entry) -> BaseDistribution:
    low, high, step = entry.low, entry.high, entry.step
    assert low is not None
    assert high is not None
    written = f"low {low}, high {high}" + (f", step {step}" if step is not None else "")
    if not low < high:
        _refuse(where, name, written, "low must be below high", "for a single value, set the key in the recipe")
    if entry.log and not low > 0:
        _refuse(where, name, written, "a logarithmic range must begin above 0", "raise low or remove log")
    if entry.log and step is not None:
        _refuse(where, name, written, "a logarithmic range has no step", "remove step, or list choices")
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-9):
        _refuse(where, name, written, "step must divide high - low", "change high or step")
    if all(isinstance(value, int) for value in (low, high, 1 if step is None else step)):
        return IntDistribution(int(low), int(high), log=entry.log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=entry.log, step=None if step is None else float(step))


def _check_conditions(key: Key, earlier: Mapping[str, Key], where: str) -> None:
    """Conditions must refer to choices of earlier keys."""
    if key.entry.also and (twice := [name for name in key.entry.also if name in earlier or name == key.name]):
        _refuse(where, key.name, twice[0], "also names a key of the space", "remove one of the two")
    for name, accepted in key.entry.when.items():
        hint = nearest(name, earlier)
        if name not in earlier or earlier[name].entry.choices is None:
            listed = ", ".join(n for n, k in earlier.items() if k.entry.choices is not None) or "none"
            _refuse(
                where, key.name, f"when: {name}", f"accepted are earlier keys with choices: {listed}{hint}",
                f"list the choices of {name} before {key.name}",
            )  # fmt: skip
        choices = earlier[name].entry.choices or []
        for value in _listed(accepted):
            if value not in choices:
                listed = ", ".join(map(str, choices))
                _refuse(where, key.name, f"when: {name}: {value}", f"accepted: {listed}", "use one of these values")


def _check_values(space: Space, key: Key, where: str) -> None:
    """The recipe must accept the values of a key, for every kind of encoder with which it is searched."""
    named = {k.name: k for k in space.keys}
    conditions: dict[str, Any] = {}
    pending = [key]
    while pending:  # conditions of conditions
        for name, accepted in pending.pop().entry.when.items():
            conditions.setdefault(name, _listed(accepted)[0])
            pending.append(named[name])
    below_encoder = any(path.startswith("model.encoder.") for path in (key.name, *key.entry.also))
    kinds: list[Any] = [None]
    if below_encoder and key.name != KIND and KIND in named:
        kinds = _listed(key.entry.when.get(KIND, named[KIND].entry.choices))
    failures: dict[Any, str] = {}
    for kind in kinds:
        context = conditions | ({} if kind is None else {KIND: kind})
        for value in key.probes():
            try:
                values = {name: context[name] for name in named if name in context} | {key.name: value}
                parse_recipe(space.trial_recipe(values), f"the recipe with {key.name}: {value}")
            except (RamifyError, ValueError) as error:
                failures.setdefault(kind, str(error))
    if not failures:
        return
    accepted = [str(kind) for kind in kinds if kind not in failures]
    fix = "use values that the recipe accepts; whole numbers are written without a point"
    if accepted:
        fix = f"add when: {{{KIND}: [{', '.join(accepted)}]}} to {key.name}"
    raise RamifyError(f"{where}: {next(iter(failures.values()))}", fix=fix)


def _sampling_by_dataset(content: dict[str, Any], path: str) -> None:
    """Factors of `proportional` for single datasets; the default of each is 1."""
    sampling = content["train"]["sampling"]
    if sampling == "proportional":
        content["train"]["sampling"] = {}
    elif not isinstance(sampling, dict):
        raise RamifyError(
            f"{path}: the recipe has {SAMPLING}: {sampling}; factors of datasets need proportional",
            fix=f"add {SAMPLING}=proportional to the command",
        )


def _label(choice: Any) -> Any:
    """A choice as a value that Optuna stores."""
    simple = choice is None or isinstance(choice, bool | int | float | str)
    return choice if simple else json.dumps(choice, sort_keys=True)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _refuse(where: str, name: str, found: Any, accepted: str, fix: str) -> Any:
    raise RamifyError(f"{where}: {name}: {found}: {accepted}", fix=fix)
