"""Base class and types common to all groups of recipe keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Rank = Annotated[int, Field(ge=0)]


class Keys(BaseModel):
    """A group of keys: unknown keys and infinite values are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
