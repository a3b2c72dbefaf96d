"""The recipe: everything that defines a run, as typed and validated models. One docstring per key.

A recipe is a YAML file. Unknown keys are errors that name the nearest known key; nothing is changed after parsing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from ramify.errors import RamifyError, nearest
from ramify.recipe_errors import mistakes
from ramify.recipe_text import override, read_yaml
from ramify.sources import formats
from ramify.sources.base import DatasetOptions

RECIPES = Path(__file__).parent / "recipes"
"""Recipes that come with the package: `demo`, `five`, `paper`."""


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Rank = Annotated[int, Field(ge=0)]


class EncoderOptions(_Keys):
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


class HeadOptions(_Keys):
    """An energy head: `layers` fully connected layers of `width` units, then one output."""

    layers: int = Field(3, ge=1)
    """Fully connected hidden layers."""
    width: int = Field(128, ge=1)
    """Units of each."""


class ForceHeadOptions(HeadOptions):
    """A force head; `conservative` derives forces from the energy head and has no layers of its own."""

    kind: Literal["direct", "conservative"] = "direct"
    """`direct`: a head of its own that combines the encoder's vectors; `conservative`: -dE/dx, with stress."""


class ModelOptions(_Keys):
    """Encoder and heads; every branch has the same shape."""

    encoder: EncoderOptions = EncoderOptions()
    energy_head: HeadOptions = HeadOptions()
    force_head: ForceHeadOptions = ForceHeadOptions()


class ObjectiveOptions(_Keys):
    """L = sum over datasets d of w_d (energy L_E + forces L_F + stress L_S), divided by the sum of all w_d.

    L_E, L_F, L_S are mean errors over all structures (forces: all components) that dataset d has in the batch.
    """

    energy: float = Field(1.0, ge=0)
    """Factor of the error of energies per atom."""
    forces: float = Field(10.0, ge=0)
    """Factor of the error of force components."""
    stress: float = Field(0.0, ge=0)
    """Only where labels exist and forces are conservative; weighs stress x volume / atoms (eV/atom)."""
    form: Literal["mae", "l2norm", "huber", "mse"] = "mae"
    """Error of one energy or force: absolute; norm of the vector (forces); quadratic below `huber_delta`; squared."""
    huber_delta: float = Field(0.02, gt=0)
    """In normalised units."""
    normalise: bool = True
    """Measures every dataset in units of its own spread, the larger of the standard deviation of its energies per atom
    and its mean absolute force (eV and eV/Å), so that none drowns the others."""
    weights: dict[str, Weight] = {}
    """Weight of each dataset, 1 where not named. Never depends on how the run is spread over processes."""


class OptimizerOptions(_Keys):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101); biases, norms and the embedding are not decayed."""

    kind: Literal["adamw"] = "adamw"
    """Method."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Part of a weight that is taken off per step, times the learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decays of the averages of gradient and squared gradient."""
    clip: float | None = Field(10.0, gt=0)
    """Largest norm of the whole gradient; null for no clipping."""
    ema: Decay = 0.999
    """Decay of the averaged weights that are evaluated and exported; 0 uses the last weights."""


class ScheduleOptions(_Keys):
    """Learning rate over the run."""

    kind: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `final` at the last step; lowered when the metric stops improving; or
    unchanged."""
    warmup_steps: int = Field(200, ge=0)
    """Steps over which the rate rises linearly from zero."""
    final: float = Field(0.01, ge=0, le=1)
    """cosine: last rate as a fraction of `lr`; plateau: lowest rate."""
    factor: float = Field(0.5, gt=0, lt=1)
    """plateau: what the rate is multiplied by."""
    patience: int = Field(3, ge=0)
    """plateau: evaluations without a better metric before that."""


class ResumeOptions(_Keys):
    """Which datasets a run that goes on may gain or lose. Nothing else of what is trained can change in a run.

    A dataset stays listed once it has come or gone; what the run already does changes nothing.
    """

    add: list[str] = []
    """Datasets that the run began without; a branch of its own starts fresh, with its own reference energies."""
    drop: list[str] = []
    """Datasets that the run began with and that `datasets` no longer names; the last checkpoint that holds them is kept
    as `with-DATASET`."""


class TrainOptions(_Keys):
    """Length, batches and precision of a run."""

    batch: int = Field(32, ge=1)
    """Structures of one step, over all branches."""
    sampling: Literal["proportional", "equal", "temperature"] | dict[str, float] = "proportional"
    """How a batch is shared out: by number of structures, equally, or by number ** (1 / temperature); or by number
    times a factor for each dataset, `{dataset: factor}`, 1 where not named."""
    temperature: float = Field(2.0, ge=1)
    """Of `sampling: temperature`: 1 is proportional, large is equal."""
    epochs: float = Field(100.0, gt=0)
    """Passes over the data: an epoch is as many steps as one pass over all structures takes."""
    max_steps: int | None = Field(None, ge=0)
    """Stops after this many steps; the schedule ends there too. With 0 nothing is trained: a fine-tuning then only
    measures and keeps what it would start from."""
    patience: int | None = Field(None, ge=1)
    """Early stopping: evaluations without a better metric; null never stops early."""
    evaluate_every: float = Field(1.0, gt=0)
    """Epochs between evaluations on the validation splits."""
    checkpoint_every: float = Field(1.0, gt=0)
    """Epochs between checkpoints of the latest state."""
    time_limit: float | None = Field(None, gt=0)
    """Minutes after which the program writes a checkpoint and ends with status 75, to be continued by another; counted
    from its start. Leave room for a step, an evaluation and a checkpoint."""
    resume: ResumeOptions = ResumeOptions()
    log_every: int = Field(20, ge=1)
    """Steps between lines of training errors."""
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    """Where the model lives: `cuda` (NVIDIA and AMD), `xpu` (Intel) or `cpu`; `auto` takes an accelerator if there is
    one, each rank of a node its own."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the process; null leaves the choice to PyTorch. Small models are fastest with 1."""
    precision: Literal["fp32", "fp64", "bf16"] = "fp32"
    """bf16: products in bfloat16, weights, geometry, sums and losses in float32."""
    checkpointing: Literal["none", "layers"] = "none"
    """`layers`: of every layer of the encoder only what enters it is kept for the backward pass, and the rest is
    calculated again there: much less memory, about a third more time; the same result to the bit."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the initial weights and of the order of structures."""
    edge_cache: float = Field(1.0, ge=0)
    """GB of memory per dataset for keeping its edges instead of finding them again each pass."""


class DataOptions(_Keys):
    """Where structures are kept while a run goes on, and who makes batches of them. None of it changes what is trained.
    See docs/data.md."""

    store: Literal["auto", "mapped", "adios", "distributed"] = "auto"
    """`mapped`: mapped into memory from one file per column; `adios`: read from one ADIOS2 file into memory that the
    ranks of a node share; `auto`: as each store was written; `distributed`: however it was written, spread over the
    memory of the ranks that train on it, which read from one another (MPI)."""
    preload: bool = False
    """Reads mapped stores into shared memory too before the run begins: parallel file systems are fast at reading in
    sequence and slow at random."""
    width: int | None = Field(None, ge=1)
    """Of `store: distributed`: at least so many ranks hold one copy of a dataset together, neighbours in their order;
    null: all that train on it. Fewer need more memory and fetch less from one another."""
    workers: int = Field(1, ge=1)
    """Threads of each rank that make batches for the steps to come."""
    ahead: int = Field(2, ge=1)
    """Steps that each of these threads may be ahead."""


class MachineOptions(_Keys):
    """What `ramify plan` and `placement: auto` assume of the machine; nothing else reads it.

    The defaults are one of the eight logical GPUs of a Frontier node: four 200 Gb/s links shared by eight, and about
    40 % of 23.9 TFLOP/s (vector float32). Measure your own where the choice is close.
    """

    tflops: float = Field(10.0, gt=0)
    """TFLOP/s that the matrix products of a step reach on one rank."""
    bandwidth: float = Field(12.5, gt=0)
    """GB/s that one rank sends while all ranks sum up gradients."""
    latency: float = Field(10.0, ge=0)
    """Microseconds from one rank to the next."""


class ParallelOptions(_Keys):
    """How a run is spread over processes (ranks). None of it changes what is trained."""

    placement: Literal["auto", "replicated", "per-branch", "per-branch-even", "balanced"] | dict[str, list[Rank]] = (
        "auto"
    )
    """Which ranks host which branches: every rank all (`replicated`, the paper's MTL-base); each rank one, in groups by
    work or equal ones (`per-branch`, `per-branch-even`, the paper's MTL-par), or several whole ones where ranks are
    few; equally much work everywhere, so that some ranks host two (`balanced`); whichever is predicted to be fastest
    and fits into memory (`auto`); or `{branch: [ranks]}`."""
    shard: Literal["none", "encoder"] = "none"
    """`encoder`: its weights, gradients and optimizer state are cut up among the ranks (FSDP2); the whole weights come
    together for the passes of a step."""
    shard_ranks: int | None = Field(None, ge=2)
    """How many ranks share one copy of a cut-up encoder, neighbours in their order (those of a node, say); their number
    must be a multiple of it. null: all ranks."""
    memory: float | None = Field(None, gt=0)
    """GB (10⁹ bytes) of each rank, for `auto` and `ramify plan`; null: as much as it takes."""
    micro_batch_atoms: int | None = Field(None, ge=1)
    """The most atoms that a rank handles at once: where a step gives it more, it takes several turns and adds up the
    gradients. A single larger structure is a turn of its own."""
    micro_batch_edges: int | None = Field(None, ge=1)
    """The same for edges."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that a rank waits for the others before the run ends with a message."""
    machine: MachineOptions = MachineOptions()

    @model_validator(mode="after")
    def _cut_up_if_shared(self) -> "ParallelOptions":
        if self.shard == "none" and self.shard_ranks is not None:
            raise ValueError("shard_ranks: nothing is cut up with `shard: none`; set `shard: encoder`")
        return self


class Scale(_Keys):
    """The energy scale and units of a trained dataset, which another dataset of its branch is measured on."""

    references: dict[str, float]
    """eV by element."""
    energy: float = Field(gt=0)
    """eV/atom, spread of the energies after references."""
    forces: float | None = Field(None, gt=0)
    """eV/Å, mean absolute force component; null where the branch predicts no forces."""


class FinetuneOptions(_Keys):
    """A run that starts from a trained model. `ramify finetune` fills these keys in; only `rank` and `start` are for
    people to write."""

    mode: Literal["new-branch", "keep-branch", "frozen-encoder", "lora", "replay"] | None = None
    """What is trained; null: the run starts from random numbers."""
    rank: int = Field(8, ge=1)
    """lora: rank of the update of every linear layer of the encoder; where a layer is smaller, as much as it has."""
    start: dict[str, str] = {}
    """By branch, the branch of the model that it starts from, or `fresh`. A branch of the model that goes on starts
    from itself."""
    model: str = ""
    """Where the model was read from."""
    checkpoint: str = "best"
    """Of the model, where that is a run."""
    weights: str = ""
    """Checksum of the model's weights."""
    scales: dict[str, Scale] = {}
    """By dataset that an old branch goes on with: the references and units of that branch, in place of those that were
    fitted when the dataset was prepared."""


class Recipe(_Keys):
    """One run."""

    name: str = ""
    """What tables call the model; derived from the branches when empty."""
    stores: str = "stores"
    """Folder that holds one store per dataset, relative to the working directory."""
    datasets: dict[str, SerializeAsAny[DatasetOptions]] = Field(min_length=1)
    """Datasets by name; the keys of each depend on its `format`."""
    branches: Literal["per-dataset", "shared"] | dict[str, list[str]] = "per-dataset"
    """One branch per dataset, one for all (the paper's Baseline-All), or `{branch: [datasets]}`."""
    model: ModelOptions = ModelOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    parallel: ParallelOptions = ParallelOptions()
    data: DataOptions = DataOptions()
    finetune: FinetuneOptions = FinetuneOptions()

    @field_validator("datasets", mode="before")
    @classmethod
    def _datasets_by_format(cls, value: Any) -> Any:
        """Validates every dataset by the model of its format."""
        if not isinstance(value, Mapping):
            return value
        for name in value:
            _check_name(str(name))
        return {str(name): _dataset(str(name), entry) for name, entry in value.items()}

    @model_validator(mode="after")
    def _names_agree(self) -> "Recipe":
        if isinstance(self.branches, dict):
            for branch in self.branches:
                _check_name(branch)
            listed = [d for datasets in self.branches.values() for d in datasets]
            _known("branches", listed, self.datasets)
            if missing := sorted(set(self.datasets) - set(listed)):
                raise ValueError(f"branches: no branch reads {', '.join(missing)}; list every dataset once")
            if twice := sorted({d for d in listed if listed.count(d) > 1}):
                raise ValueError(
                    f"branches: {', '.join(twice)} stands in more than one branch; list every dataset once"
                )
            if empty := sorted(b for b, datasets in self.branches.items() if not datasets):
                raise ValueError(f"branches: {', '.join(empty)} has no dataset")
        _known("objective.weights", self.objective.weights, self.datasets)
        if not any(self.objective.weights.get(name, 1.0) for name in self.datasets):
            raise ValueError("objective.weights: the weights of all datasets are 0; at least one must be above")
        if not (self.objective.energy or self.objective.forces or self.objective.stress):
            raise ValueError("objective: energy, forces and stress are all 0; at least one must be above")
        if isinstance(self.train.sampling, dict):
            _known("train.sampling", self.train.sampling, self.datasets)
            if wrong := [name for name, factor in self.train.sampling.items() if not factor > 0]:
                raise ValueError(f"train.sampling: the factor of {', '.join(wrong)} must be above 0")
        _known("train.resume.add", self.train.resume.add, self.datasets)
        if still := [name for name in self.train.resume.drop if name in self.datasets]:
            raise ValueError(f"train.resume.drop: {', '.join(still)} stands in datasets; take it out there, or here")
        if self.objective.stress > 0 and self.model.force_head.kind != "conservative":
            raise ValueError("objective.stress: needs model.force_head.kind: conservative, stress is dE/dε / V")
        return self

    @model_validator(mode="after")
    def _finetuning_fits(self) -> "Recipe":
        branches = self.datasets_of_branches()
        for branch in self.finetune.start:
            if branch not in branches:
                raise ValueError(
                    f"finetune.start: no branch is called '{branch}'{nearest(branch, branches)}; "
                    f"branches: {', '.join(branches)}"
                )
        _known("finetune.scales", self.finetune.scales, self.datasets)
        if self.finetune.mode in ("frozen-encoder", "lora") and self.parallel.shard == "encoder":
            raise ValueError(f"parallel.shard: mode {self.finetune.mode} leaves no encoder to cut up; take it out")
        return self

    @model_validator(mode="after")
    def _every_branch_has_ranks(self) -> "Recipe":
        placement, branches = self.parallel.placement, self.datasets_of_branches()
        if isinstance(placement, str):
            return self
        for branch in placement:
            if branch not in branches:
                raise ValueError(
                    f"parallel.placement: no branch is called '{branch}'{nearest(branch, branches)}; "
                    f"branches: {', '.join(branches)}"
                )
        if missing := [branch for branch in branches if not placement.get(branch)]:
            raise ValueError(
                f"parallel.placement: no rank hosts {', '.join(missing)}; name at least one for every branch"
            )
        if twice := [branch for branch, ranks in placement.items() if len(set(ranks)) < len(ranks)]:
            raise ValueError(f"parallel.placement: a rank stands twice in {', '.join(twice)}")
        return self

    def datasets_of_branches(self) -> dict[str, list[str]]:
        """The datasets each branch reads, in the recipe's order."""
        if self.branches == "per-dataset":
            return {name: [name] for name in self.datasets}
        if self.branches == "shared":
            return {"shared": list(self.datasets)}
        return {branch: list(datasets) for branch, datasets in self.branches.items()}

    def branch_of_datasets(self) -> dict[str, str]:
        """The branch that reads each dataset."""
        return {dataset: branch for branch, group in self.datasets_of_branches().items() for dataset in group}

    def to_yaml(self) -> str:
        """The recipe with every default filled in."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: a YAML file, or the name of a recipe that comes with the package.
        overrides: `key.sub=value` pairs; values are YAML.

    Raises:
        RamifyError: no such file, not YAML, an unknown key (with the nearest known one) or a value out of range.
    """
    file = _find(path)
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RamifyError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise RamifyError(
            f"{file} holds {type(content).__name__}, a recipe is a mapping of keys", fix="see recipes/demo.yaml"
        )
    for pair in overrides:
        override(content, pair)
    return parse_recipe(content, where=str(file))


def parse_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Validates a recipe given as plain data; `where` is named in errors."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [f"{where} is not a valid recipe:", *mistakes(error, Recipe)]
        raise RamifyError("\n  ".join(lines)) from None


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    packaged = RECIPES / f"{path}.yaml"
    if packaged.is_file():
        return packaged
    known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
    raise RamifyError(f"no recipe at {path}", fix=f"give a YAML file or one of: {', '.join(known)}")


def _dataset(name: str, entry: Any) -> DatasetOptions:
    if isinstance(entry, DatasetOptions):
        return entry
    if not isinstance(entry, Mapping) or "format" not in entry:
        raise ValueError(f"datasets.{name}: needs `format`, one of {', '.join(sorted(formats()))}, and `path`")
    chosen = formats().get(str(entry["format"]))
    if chosen is None:
        hint = nearest(str(entry["format"]), formats())
        raise ValueError(
            f"datasets.{name}.format: '{entry['format']}' is unknown{hint}; accepted: {', '.join(sorted(formats()))}"
        )
    try:
        return chosen.options.model_validate(entry)
    except ValidationError as error:
        raise ValueError("\n  ".join(mistakes(error, chosen.options, f"datasets.{name}."))) from None


def _known(key: str, names: Any, datasets: Mapping[str, Any]) -> None:
    for name in names:
        if name not in datasets:
            raise ValueError(
                f"{key}: no dataset is called '{name}'{nearest(name, datasets)}; datasets: {', '.join(datasets)}"
            )


def _check_name(name: str) -> None:
    """Names become folders, files and parameter names."""
    if not name or not name.replace("-", "").replace("_", "").isalnum() or name[0] == "-":
        raise ValueError(f"'{name}' cannot be a name: use letters, digits, '-' and '_'")
