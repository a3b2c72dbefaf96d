"""Recipe keys of a run that starts from a trained model."""

from typing import Literal

from pydantic import Field

from ramify.recipe.keys import Keys


class Scale(Keys):
    """The energy scale and units of a trained dataset, which another dataset of its branch is measured on."""

    references: dict[str, float]
    """eV by element."""
    energy: float = Field(gt=0)
    """eV/atom, spread of the energies after references."""
    forces: float | None = Field(None, gt=0)
    """eV/Å, mean absolute force component; null where the branch predicts no forces."""


class FinetuneOptions(Keys):
    """A run that starts from a trained model. `ramify finetune` fills these keys in; only `rank` and `start` are for
    people to write."""

    mode: Literal["new-branch", "keep-branch", "frozen-encoder", "lora", "replay"] | None = None
    """What is trained; null: the run starts from random numbers."""
    rank: int = Field(8, ge=1)
    """lora: rank of the update of every linear layer of the encoder; where a layer is smaller, as much as it has."""
    start: dict[str, str] = Field({})
    """By branch, the branch of the model that it starts from, or `fresh`. A branch of the model that goes on starts
    from itself."""
    model: str = ""
    """Where the model was read from."""
    checkpoint: str = "best"
    """Of the model, where that is a run."""
    weights: str = ""
    """Checksum of the model's weights."""
    scales: dict[str, Scale] = Field({})
    """By dataset that an old branch goes on with: the references and units of that branch, in place of those that were
    fitted when the dataset was prepared."""
