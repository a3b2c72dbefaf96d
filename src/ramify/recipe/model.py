"""Recipe keys of the model: encoder and heads."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Keys


class EncoderOptions(Keys):
    """The shared encoder."""

    kind: Literal["egnn"] = "egnn"
    """Architecture."""
    layers: int = Field(4, ge=1)
    """Rounds of message passing."""
    width: int = Field(128, ge=1)
    """Scalar features per atom."""
    vector_channels: int = Field(32, ge=1)
    """Vector features per atom."""
    message_layers: Literal[1, 2] = 2
    """Activated layers of the message network on every edge: 2 as in the EGNN paper, 1 leaves out the second, whose
    work (edges x width²) dominates."""
    elements: Literal["periodic-table", "random", "features"] = "periodic-table"
    """What tells elements apart: an embedding that starts from period, group and covalent radius, so that an element of
    few structures begins near its relatives; one that starts from random numbers; or a linear map of these features
    and nothing else, for datasets with hardly more materials than elements."""
    radial: int = Field(8, ge=1)
    """Size of the radial basis."""
    cutoff: float = Field(5.0, gt=0)
    """Å."""
    max_neighbors: int | None = Field(20, ge=1)
    """The most neighbours that an atom may have: where there are more, its neighbourhood ends smoothly before the
    cutoff; null keeps all within the cutoff."""


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

    encoder: EncoderOptions = EncoderOptions()
    energy_head: HeadOptions = HeadOptions()
    force_head: ForceHeadOptions = ForceHeadOptions()
