"""What all groups of recipe keys have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Rank = Annotated[int, Field(ge=0)]


class Keys(BaseModel):
    """A group of keys: none that is unknown, none that changes, no infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
