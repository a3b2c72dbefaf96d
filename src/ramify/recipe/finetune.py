"""Recipe keys of fine-tuning."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Keys


class Scale(Keys):
    """Reference energies and label scales of a trained branch, applied to the new dataset that continues it."""

    references: dict[str, float]
    """Reference energies in eV by element."""
    energy: float = Field(gt=0)
    """eV/atom, standard deviation of the energies after subtracting references."""
    forces: float | None = Field(None, gt=0)
    """eV/Å, mean absolute force component; null where the branch predicts no forces."""


class FinetuneOptions(Keys):
    """A run that starts from a trained model. `ramify finetune` sets these keys; users only set `rank`, `start` and
    `old_rate`."""

    mode: Literal["new-branch", "keep-branch", "frozen-encoder", "lora", "replay"] | None = None
    """Which parameters are trained; null: no pretrained model, the run starts from random weights."""
    rank: int = Field(8, ge=1)
    """lora: rank of the update of every linear layer of the encoder, at most the size of the layer."""
    start: dict[str, str] = Field({})
    """For each branch, the branch of the pretrained model that it starts from, or `fresh`. A branch that continues
    starts from itself."""
    old_rate: float = Field(1.0, gt=0, le=1)
    """Learning rate of pretrained parameters (the encoder, and branches that continue) as a fraction of `optimizer.lr`.
    New branches and low-rank updates use `optimizer.lr`."""
    model: str = ""
    """Path of the pretrained model."""
    checkpoint: str = "best"
    """Checkpoint of the pretrained model, if it is a run."""
    weights: str = ""
    """Checksum of the weights of the pretrained model."""
    new_conditions: bool = False
    """Whether the run adds `model.conditions` to a model without conditions."""
    scales: dict[str, Scale] = Field({})
    """For each dataset that continues a pretrained branch: references and scales of that branch, which replace those of
    the prepared dataset."""
