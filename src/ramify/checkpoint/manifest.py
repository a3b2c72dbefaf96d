"""The required content of `manifest.json` of a checkpoint."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ramify.untrusted import Element, Name


class _Part(BaseModel):
    """Base of all models here: checks the declared entries and accepts others."""

    model_config = ConfigDict(extra="allow")


class Counts(_Part):
    """Size of a split."""

    structures: int = Field(ge=0)
    atoms: int = Field(ge=0)


class Splits(_Part):
    """Sizes of the splits."""

    train: Counts


class FittedReferences(_Part):
    """Reference energies, eV by element."""

    energies: dict[Element, float]
    rank: int


class LabelScales(_Part):
    """Scales of the labels."""

    energy_std: float
    forces_mae: float | None
    min_distance: float | None


class TrainedDataset(_Part):
    """The manifest of a store that a model was trained on, as kept in its checkpoint; of any version."""

    theory: str
    splits: Splits
    references: FittedReferences
    statistics: LabelScales


class _TrainKeys(_Part):
    precision: str


class _RecipeKeys(_Part):
    model: dict[str, Any]
    train: _TrainKeys


class CheckpointNames(_Part):
    """The names of datasets and branches, which become paths in checkpoints and exports."""

    step: int = Field(ge=0)
    branches: list[Name]
    branch_of: dict[Name, Name] = {}
    carried: dict[Name, dict[Name, dict[str, Any]]] = {}
    datasets: dict[Name, Any] = {}
    files: dict[str, str]


class CheckpointManifest(CheckpointNames):
    """All required entries."""

    branch_of: dict[Name, Name]
    datasets: dict[Name, TrainedDataset]
    recipe: _RecipeKeys
    trainer: dict[str, Any]
    ramify: str

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if unknown := sorted(set(self.branch_of) - set(self.datasets)):
            raise ValueError(f"branch_of names the dataset '{unknown[0]}', which is not in datasets")
        if unknown := sorted({*self.branch_of.values(), *self.carried} - set(self.branches)):
            raise ValueError(f"branch_of or carried names the branch '{unknown[0]}', which is not in branches")
        return self
