"""Recipe keys of the model: encoder and heads."""

from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ramify.recipe.base import Keys
from ramify.recipe.encoder import EncoderOptions, encoder_options


class HeadOptions(Keys):
    """An energy head: `layers` fully connected layers of `width` units, then one output."""

    layers: int = Field(3, ge=1)
    """Fully connected hidden layers."""
    width: int = Field(128, ge=1)
    """Units of each hidden layer."""


class ForceHeadOptions(HeadOptions):
    """A force head; `conservative` differentiates the energy head and has no layers."""

    kind: Literal["direct", "conservative"] = "direct"
    """`direct`: a separate head that combines the encoder's vectors; `conservative`: -dE/dx, with stress."""


class ModelOptions(Keys):
    """Encoder, heads and conditions; all branches have the same architecture."""

    encoder: SerializeAsAny[EncoderOptions] = Field(default_factory=lambda: encoder_options({}))
    energy_head: HeadOptions = HeadOptions()
    force_head: ForceHeadOptions = ForceHeadOptions()
    conditions: tuple[Literal["charge", "spin", "dataset"], ...] = ()
    """Properties of a structure that the encoder takes besides its atoms: total `charge`, `spin` (multiplicity), and
    the `dataset`, as an alternative to branches. Training and prediction refuse structures without charge or spin; they
    are never taken for neutral singlets. See docs/physics.md."""
    datasets: tuple[str, ...] = ()
    """Names of the datasets in the order of their parameters in the condition `dataset`; set by the program."""

    @field_validator("conditions")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        """The order of the conditions in the recipe has no meaning."""
        return tuple(name for name in ("charge", "spin", "dataset") if name in value)

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the keys of conditions out where there are none, so that older programs read the model."""
        content: dict[str, Any] = handler(self)
        for key in ("conditions", "datasets"):
            if not content.get(key, True):
                del content[key]
        return content

    repulsion: Literal["none", "zbl"] = "none"
    """`zbl`: adds the screened repulsion of nuclei of Ziegler, Biersack and Littmark between atoms closer than the sum
    of their covalent radii, so that crowded atoms are pushed apart also where there are no data. The network learns the
    rest of the energy. Needs conservative forces."""

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder_by_kind(cls, value: Any) -> Any:
        """Validates the encoder by the keys of its kind."""
        return encoder_options(value)

    @model_validator(mode="after")
    def _repulsion_has_forces(self) -> Self:
        """Direct forces are not the gradient of an energy, so that the repulsion would not act on them."""
        if self.repulsion != "none" and self.force_head.kind == "direct":
            raise ValueError(
                f"model.repulsion: {self.repulsion} needs conservative forces, found model.force_head.kind: direct; "
                "accepted: none, or model.force_head.kind: conservative"
            )
        return self
