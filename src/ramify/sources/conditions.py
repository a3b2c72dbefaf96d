"""Conditions of the recipe key `where`: a value, a list of accepted values, or a range."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

COLUMNS = ("n_atoms", "elements", "group", "periodic")
"""What every format knows of a structure."""

Scalar = bool | int | float | str


class Range(BaseModel):
    """From `min` to `max`, both included; at least one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float | None = None
    """Smallest value."""
    max: float | None = None
    """Largest value."""

    @model_validator(mode="after")
    def _has_an_end(self) -> "Range":
        if self.min is None and self.max is None:
            raise ValueError("a range needs `min` or `max`")
        return self


Condition = Range | list[Scalar] | Scalar
"""A value, a list of accepted values, or a range."""


def left_out(name: str) -> str:
    """The phrase that counts what a condition on `name` leaves out."""
    return f"left out by where ({name})"


NOT_THE_NTH = "left out by every"
BEYOND_LIMIT = "left out by limit"


def accepts(condition: Condition, value: Any) -> bool:
    """Whether a value of a file fulfils a condition; numbers and their texts are not the same."""
    plain = value.item() if isinstance(value, np.generic | np.ndarray) and np.size(value) == 1 else value
    if isinstance(condition, Range):
        if isinstance(plain, bool) or not isinstance(plain, int | float):
            return False
        return (condition.min is None or plain >= condition.min) and (condition.max is None or plain <= condition.max)
    accepted = condition if isinstance(condition, list) else [condition]
    return any(isinstance(plain, str) == isinstance(a, str) and bool(np.all(plain == a)) for a in accepted)


def rejected_by(where: Mapping[str, Condition], found: Mapping[str, Any]) -> str | None:
    """The first name whose condition the values that a file names do not fulfil; an absent value fulfils none."""
    for name, condition in where.items():
        if name not in COLUMNS and not (found.get(name) is not None and accepts(condition, found[name])):
            return name
    return None
