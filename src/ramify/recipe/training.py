"""Recipe keys of training: objective, optimizer, learning rate schedule and run."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Decay, Keys, Weight


class ObjectiveOptions(Keys):
    """L = sum over datasets d of w_d (energy L_E + forces L_F + stress L_S), divided by the sum of all w_d.

    L_E, L_F, L_S are mean errors over all structures (forces: all components) that dataset d has in the batch.
    """

    energy: float = Field(1.0, ge=0)
    """Weight of the error of energies per atom."""
    forces: float = Field(10.0, ge=0)
    """Weight of the error of force components."""
    stress: float = Field(0.0, ge=0)
    """Weight of the error of stress x volume / atoms (eV/atom); needs stress labels and conservative forces."""
    form: Literal["mae", "l2norm", "huber", "mse"] = "mae"
    """Error of one energy or force: absolute (`mae`); norm of the vector (`l2norm`, forces); quadratic below
    `huber_delta` and linear above (`huber`); squared (`mse`)."""
    huber_delta: float = Field(0.02, gt=0)
    """Threshold of `form: huber`, in normalised units."""
    normalise: bool = True
    """Whether to divide the labels of every dataset by its own scale, the larger of the standard deviation of its
    energies per atom and its mean absolute force (eV and eV/Å), so that no dataset dominates the loss."""
    labels: dict[str, Weight] = Field({})
    """Weights of the errors of further labels, each divided by its own scale; the default is the weight with which the
    label is registered (docs/extending.md)."""
    weights: dict[str, Weight] = Field({})
    """Weight of each dataset, 1 by default. Independent of the distribution of the run over processes."""


class OptimizerOptions(Keys):
    """The optimizer. Biases, norms and the embedding have no weight decay."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw`: AdamW (Loshchilov & Hutter, arXiv:1711.05101); `muon`: Muon (arXiv:2502.16982) for the matrices between
    layers, AdamW for all other parameters, with the same learning rate. `muon` needs an encoder that is not sharded."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay: fraction of a weight that is subtracted per step, times the learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW: decay rates of the moving averages of the gradient and the squared gradient."""
    momentum: Decay = 0.95
    """Muon: decay rate of the moving average of gradients."""
    clip: float | None = Field(10.0, gt=0)
    """Maximum norm of the whole gradient; null for no clipping."""
    ema: Decay = 0.999
    """Decay rate of the moving average of weights, which is evaluated and exported; 0 uses the last weights."""


class ScheduleOptions(Keys):
    """Learning rate schedule."""

    kind: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning rate after the warm-up: half a cosine down to `final` at the last step; reduced when the metric stops
    improving (`plateau`); or constant."""
    warmup_steps: int = Field(200, ge=0)
    """Steps over which the rate rises linearly from zero."""
    start: int = Field(0, ge=0)
    """First step of the schedule. A resumed run restarts its schedule, warm-up included, if this is the step at which
    it resumes; a new run has 0."""
    final: float = Field(0.01, ge=0, le=1)
    """cosine: last rate as a fraction of `lr`; plateau: lowest rate."""
    factor: float = Field(0.5, gt=0, lt=1)
    """plateau: factor of each reduction."""
    patience: int = Field(3, ge=0)
    """plateau: evaluations without a better metric before a reduction."""


class ResumeOptions(Keys):
    """Datasets that a resumed run adds or drops. No other key that affects the result can change in a run.

    Datasets stay listed after they were added or dropped; listing them again has no effect.
    """

    add: list[str] = Field([])
    """Datasets added after the start of the run; a new branch starts with random weights and its own reference
    energies."""
    drop: list[str] = Field([])
    """Datasets dropped after the start of the run, and removed from `datasets`; the last checkpoint that contains them
    is kept as `with-DATASET`."""


class TrainOptions(Keys):
    """Length, batches and precision of a run."""

    batch: int = Field(32, ge=1)
    """Number of structures per step, over all branches."""
    sampling: Literal["proportional", "equal", "temperature"] | dict[str, float] = "proportional"
    """Fraction of each dataset in a batch: proportional to its number of structures, equal, or proportional to number
    ** (1 / temperature); or proportional to number times a factor for each dataset, `{dataset: factor}`, 1 by
    default."""
    temperature: float = Field(2.0, ge=1)
    """For `sampling: temperature`: 1 equals `proportional`, large values approach `equal`."""
    epochs: float = Field(100.0, gt=0)
    """Passes over the data: in one epoch, as many structures are sampled as the training splits contain."""
    max_steps: int | None = Field(None, ge=0)
    """Maximum number of steps; the schedule ends there too. With 0 nothing is trained: a fine-tuning then only
    evaluates and saves its initial model."""
    patience: int | None = Field(None, ge=1)
    """Early stopping: evaluations without a better metric; null: no early stopping."""
    evaluate_every: float = Field(1.0, gt=0)
    """Epochs between evaluations on the validation splits."""
    checkpoint_every: float = Field(1.0, gt=0)
    """Epochs between checkpoints of the latest state."""
    time_limit: float | None = Field(None, gt=0)
    """Minutes after which the program writes a checkpoint and exits with status 75, to be resumed by another job;
    counted from its start. Allow time for two steps, an evaluation and a checkpoint."""
    stop_after: int | None = Field(None, ge=1)
    """Step after which the program pauses the run: at the next evaluation on the validation splits (without them, at
    this step) it writes a checkpoint and exits with status 75. The length of the run and its schedule do not change,
    so that a run resumed with a larger value or null continues bit-identically."""
    resume: ResumeOptions = ResumeOptions()
    log_every: int = Field(20, ge=1)
    """Steps between log entries of training errors."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Programs that show the curves, the recipe and the tables of a run. `tensorboard` writes into the run; `wandb`
    (Weights & Biases) and `mlflow` are extras, configured by environment variables (docs/trackers.md)."""
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    """Device of the model: `cuda` (NVIDIA and AMD), `xpu` (Intel) or `cpu`; `auto` selects an accelerator if there is
    one, a different one for each rank of a node."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the process; null: PyTorch's default. Small models are fastest with 1."""
    precision: Literal["fp32", "fp64", "bf16", "tf32"] = "fp32"
    """bf16: matrix products of a step in bfloat16; weights, geometry, sums and losses in float32. tf32: float32, but
    matrix products round their factors to 10 bits of mantissa (NVIDIA GPUs since Ampere). Evaluations never use
    reduced precision."""
    slow_precision: Literal["refuse", "allow"] = "refuse"
    """Whether to train if matrix products of `precision: bf16` are slower than those of fp32, as on processors without
    bfloat16 instructions. `refuse` measures both when training starts (less than 0.1 s) and stops in this case."""
    checkpointing: Literal["none", "layers"] = "none"
    """`layers`: only the input of every encoder layer is kept for the backward pass, and the rest is recomputed: much
    less memory, about a third more time, and bitwise the same result."""
    compile: Literal["none", "auto", "default", "cuda-graphs"] = "none"
    """Whether to compile the forward and backward passes of a training step (`torch.compile`), which takes a minute or
    more the first time and seconds afterwards: programs are kept beside the stores. `default` compiles one program for
    all batch sizes in the first step, on a GPU with Triton, on a CPU with a C++ compiler, which must be installed;
    `cuda-graphs` also records CUDA graphs on an NVIDIA GPU, for a few sizes to which batches are padded. `auto`
    measures plain steps and compiles if the remaining steps gain more than the compilation takes, then alternates plain
    and compiled steps and continues with the faster ones; without a compiler, with plain ones. Results are equal within
    rounding; with `auto`, also two runs of the same recipe are. Evaluation and trained models are not compiled."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights and of the order of structures."""
    edge_cache: float = Field(1.0, ge=0)
    """GB of memory per dataset for a cache of its edges; 0 computes edges for every batch."""
    neighbor_search: Literal["loader", "device"] = "loader"
    """Where the edges of a batch are found. `loader`: by threads on the CPU, or taken from the edge cache. `device`: by
    the device of the model, while earlier steps run; then only positions are read and transferred, there is no edge
    cache, and each thread uses up to 0.2 GB of the device. Both find the same edges, in a different order."""
