"""The whole recipe, and the validation of keys that depend on one another."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from ramify.labels import further
from ramify.recipe.base import Keys
from ramify.recipe.data import DataOptions
from ramify.recipe.finetune import FinetuneOptions
from ramify.recipe.model import ModelOptions
from ramify.recipe.names import check_known, dataset_options
from ramify.recipe.parallel import ParallelOptions
from ramify.recipe.training import ObjectiveOptions, OptimizerOptions, ScheduleOptions, TrainOptions
from ramify.sources.base import DatasetOptions
from ramify.untrusted import check_name


class Recipe(Keys):
    """One run."""

    name: str = ""
    """Name of the model in tables; derived from the branches if empty."""
    stores: str = "stores"
    """Folder that holds one store per dataset, relative to the working directory."""
    datasets: dict[str, SerializeAsAny[DatasetOptions]] = Field(min_length=1)
    """Datasets by name; the keys of each depend on its `format`."""
    branches: Literal["per-dataset", "shared"] | dict[str, list[str]] = "per-dataset"
    """One branch per dataset (`per-dataset`), one for all (`shared`, the paper's Baseline-All), or
    `{branch: [datasets]}`."""
    model: ModelOptions = Field(default_factory=ModelOptions)
    objective: ObjectiveOptions = ObjectiveOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    parallel: ParallelOptions = ParallelOptions()
    data: DataOptions = DataOptions()
    finetune: FinetuneOptions = FinetuneOptions()

    @model_validator(mode="before")
    @classmethod
    def _datasets_of_condition(cls, value: Any) -> Any:
        """Lists the datasets of the condition `dataset`; `model.datasets` of a fine-tuning has earlier ones, too."""
        model = value.get("model") if isinstance(value, Mapping) else None
        if not isinstance(model, Mapping) or not isinstance(value.get("datasets"), Mapping):
            return value
        if "dataset" not in (model.get("conditions") or ()) or model.get("datasets"):
            return value
        return {**value, "model": {**model, "datasets": [str(name) for name in value["datasets"]]}}

    @field_validator("datasets", mode="before")
    @classmethod
    def _datasets_by_format(cls, value: Any) -> Any:
        """Validates every dataset by the model of its format."""
        if not isinstance(value, Mapping):
            return value
        for name in value:
            check_name(str(name))
        return {str(name): dataset_options(str(name), entry) for name, entry in value.items()}

    @model_validator(mode="after")
    def _names_agree(self) -> "Recipe":
        if isinstance(self.branches, dict):
            for branch in self.branches:
                check_name(branch)
            listed = [d for datasets in self.branches.values() for d in datasets]
            check_known("branches", listed, self.datasets)
            if missing := sorted(set(self.datasets) - set(listed)):
                raise ValueError(f"branches: no branch reads {', '.join(missing)}; list every dataset once")
            if twice := sorted({d for d in listed if listed.count(d) > 1}):
                raise ValueError(
                    f"branches: {', '.join(twice)} occurs in more than one branch; list every dataset once"
                )
            if empty := sorted(b for b, datasets in self.branches.items() if not datasets):
                raise ValueError(f"branches: {', '.join(empty)} has no dataset")
        if "dataset" in self.model.conditions:
            check_known("model.datasets", self.datasets, self.model.datasets)
        check_known("objective.weights", self.objective.weights, self.datasets)
        check_known("objective.labels", self.objective.labels, further(), "label")
        if not any(self.objective.weights.get(name, 1.0) for name in self.datasets):
            raise ValueError("objective.weights: the weights of all datasets are 0; at least one must be above")
        if not (self.objective.energy or self.objective.forces or self.objective.stress):
            raise ValueError("objective: energy, forces and stress are all 0; at least one must be above")
        if isinstance(self.train.sampling, dict):
            check_known("train.sampling", self.train.sampling, self.datasets)
            if wrong := [name for name, factor in self.train.sampling.items() if not factor > 0]:
                raise ValueError(f"train.sampling: the factor of {', '.join(wrong)} must be above 0")
        check_known("train.resume.add", self.train.resume.add, self.datasets)
        if still := [name for name in self.train.resume.drop if name in self.datasets]:
            raise ValueError(
                f"train.resume.drop: {', '.join(still)} is still in datasets; remove it from one of the two"
            )
        if self.objective.stress > 0 and self.model.force_head.kind != "conservative":
            raise ValueError("objective.stress: needs model.force_head.kind: conservative, stress is dE/dε / V")
        return self

    @model_validator(mode="after")
    def _finetuning_fits(self) -> "Recipe":
        branches = self.datasets_of_branches()
        check_known("finetune.start", self.finetune.start, branches, "branch")
        check_known("finetune.scales", self.finetune.scales, self.datasets)
        if self.finetune.mode in ("frozen-encoder", "lora") and self.parallel.shard == "encoder":
            raise ValueError(f"parallel.shard: mode {self.finetune.mode} leaves no encoder to shard; remove the key")
        return self

    @model_validator(mode="after")
    def _optimizer_fits(self) -> "Recipe":
        if self.optimizer.kind == "muon" and self.parallel.shard != "none":
            raise ValueError(
                f"optimizer.kind: muon is not compatible with parallel.shard: {self.parallel.shard}: it needs whole "
                "matrices; set optimizer.kind: adamw, or parallel.shard: none"
            )
        return self

    @model_validator(mode="after")
    def _compilation_fits(self) -> "Recipe":
        if self.train.compile not in ("none", "auto") and (reason := self.not_compiled()):
            raise ValueError(reason)
        return self

    def not_compiled(self) -> str:
        """Why steps of this recipe cannot be compiled; empty if they can."""
        if self.train.checkpointing != "none":
            return (
                f"train.checkpointing: {self.train.checkpointing} is not compatible with train.compile, which chooses "
                "itself what to recompute; set one of the two to none"
            )
        if self.parallel.shard != "none":
            return (
                f"parallel.shard: {self.parallel.shard} is not compatible with train.compile, which needs the whole "
                "encoder; set one of the two to none"
            )
        return ""

    @model_validator(mode="after")
    def _every_branch_has_ranks(self) -> "Recipe":
        placement, branches = self.parallel.placement, self.datasets_of_branches()
        if isinstance(placement, str):
            return self
        check_known("parallel.placement", placement, branches, "branch")
        if missing := [branch for branch in branches if not placement.get(branch)]:
            raise ValueError(
                f"parallel.placement: no rank hosts {', '.join(missing)}; name at least one for every branch"
            )
        if twice := [branch for branch, ranks in placement.items() if len(set(ranks)) < len(ranks)]:
            raise ValueError(f"parallel.placement: a rank occurs twice in {', '.join(twice)}")
        return self

    def datasets_of_branches(self) -> dict[str, list[str]]:
        """Datasets of each branch, in the order of the recipe."""
        if self.branches == "per-dataset":
            return {name: [name] for name in self.datasets}
        if self.branches == "shared":
            return {"shared": list(self.datasets)}
        return {branch: list(datasets) for branch, datasets in self.branches.items()}

    def branch_of_datasets(self) -> dict[str, str]:
        """Branch of each dataset."""
        return {dataset: branch for branch, group in self.datasets_of_branches().items() for dataset in group}

    def content_with(self, datasets: Collection[str]) -> dict[str, Any]:
        """The recipe as plain data, with only these datasets and their weights and factors; `branches` is unchanged."""
        content = self.model_dump(mode="json")
        weights, sampling = content["objective"]["weights"], content["train"]["sampling"]
        content["datasets"] = {name: content["datasets"][name] for name in datasets}
        content["objective"]["weights"] = {name: weights[name] for name in datasets if name in weights}
        if isinstance(sampling, dict):
            content["train"]["sampling"] = {
                name: sampling[name] for name in datasets if name in sampling
            } or "proportional"
        return content

    def to_yaml(self) -> str:
        """The recipe with every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
