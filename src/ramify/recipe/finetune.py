"""Recipe keys of a run that starts from a trained model."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Keys


class Scale(Keys):
    """The energy scale and units of a trained dataset, which another dataset of its branch is measured on."""

    references: dict[str, float]
    """eV by element."""
    energy: float = Field(gt=0)
    """eV/atom, spread of the energies after references."""
    forces: float | None = Field(None, gt=0)
    """eV/Å, mean absolute force component; null where the branch predicts no forces."""


class FinetuneOptions(Keys):
    """A run that starts from a trained model. `ramify finetune` fills these keys in; only `rank`, `start` and
    `old_rate` are for people to write."""

    mode: Literal["new-branch", "keep-branch", "frozen-encoder", "lora", "replay"] | None = None
    """What is trained; null: the run starts from random numbers."""
    rank: int = Field(8, ge=1)
    """lora: rank of the update of every linear layer of the encoder; where a layer is smaller, as much as it has."""
    start: dict[str, str] = Field({})
    """By branch, the branch of the model that it starts from, or `fresh`. A branch of the model that goes on starts
    from itself."""
    old_rate: float = Field(1.0, gt=0, le=1)
    """Learning rate of what the model has learnt already, as a part of `optimizer.lr`: of the encoder, and of branches
    that go on. A new branch and low-rank updates take all of `optimizer.lr`."""
    model: str = ""
    """Where the model was read from."""
    checkpoint: str = "best"
    """Of the model, where that is a run."""
    weights: str = ""
    """Checksum of the model's weights."""
    scales: dict[str, Scale] = Field({})
    """By dataset that an old branch goes on with: the references and units of that branch, in place of those that were
    fitted when the dataset was prepared."""
