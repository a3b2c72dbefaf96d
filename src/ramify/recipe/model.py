"""Recipe keys of the model: encoder and heads."""

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from ramify.recipe.base import Keys
from ramify.recipe.encoder import EncoderOptions, encoder_options


class HeadOptions(Keys):
    """An energy head: `layers` fully connected layers of `width` units, then one output."""

    layers: int = Field(3, ge=1)
    """Fully connected hidden layers."""
    width: int = Field(128, ge=1)
    """Units of each."""


class ForceHeadOptions(HeadOptions):
    """A force head; `conservative` derives forces from the energy head and has no layers of its own."""

    kind: Literal["direct", "conservative"] = "direct"
    """`direct`: a head of its own that combines the encoder's vectors; `conservative`: -dE/dx, with stress."""


class ModelOptions(Keys):
    """Encoder and heads; every branch has the same shape."""

    encoder: SerializeAsAny[EncoderOptions] = Field(default_factory=lambda: encoder_options({}))
    energy_head: HeadOptions = HeadOptions()
    force_head: ForceHeadOptions = ForceHeadOptions()

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder_by_kind(cls, value: Any) -> Any:
        """Validates the encoder by the keys of its kind."""
        return encoder_options(value)
