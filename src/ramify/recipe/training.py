"""Recipe keys of training: the objective, the optimizer, its learning rate, and the run."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Decay, Keys, Weight


class ObjectiveOptions(Keys):
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
    labels: dict[str, Weight] = Field({})
    """Factors of the errors of further labels, in units of their own spread; of those that are not named, the one that
    the label is registered with (docs/extending.md)."""
    weights: dict[str, Weight] = Field({})
    """Weight of each dataset, 1 where not named. Never depends on how the run is spread over processes."""


class OptimizerOptions(Keys):
    """How weights follow gradients; biases, norms and the embedding are not decayed."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`adamw`: AdamW (Loshchilov & Hutter, arXiv:1711.05101); `muon`: Muon (arXiv:2502.16982) for the matrices between
    layers, AdamW for all else, with one learning rate for both. `muon` needs the encoder whole on every rank."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Part of a weight that is taken off per step, times the learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW: decays of the averages of gradient and squared gradient."""
    momentum: Decay = 0.95
    """Muon: decay of the average of gradients."""
    clip: float | None = Field(10.0, gt=0)
    """Largest norm of the whole gradient; null for no clipping."""
    ema: Decay = 0.999
    """Decay of the averaged weights that are evaluated and exported; 0 uses the last weights."""


class ScheduleOptions(Keys):
    """Learning rate over the run."""

    kind: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `final` at the last step; lowered when the metric stops improving; or
    unchanged."""
    warmup_steps: int = Field(200, ge=0)
    """Steps over which the rate rises linearly from zero."""
    start: int = Field(0, ge=0)
    """Step that the schedule counts from. A run that goes on begins its schedule anew, warm-up included, where this is
    the step that it stands at; a new run has 0."""
    final: float = Field(0.01, ge=0, le=1)
    """cosine: last rate as a fraction of `lr`; plateau: lowest rate."""
    factor: float = Field(0.5, gt=0, lt=1)
    """plateau: what the rate is multiplied by."""
    patience: int = Field(3, ge=0)
    """plateau: evaluations without a better metric before that."""


class ResumeOptions(Keys):
    """Which datasets a run that goes on may gain or lose. Nothing else of what is trained can change in a run.

    A dataset stays listed once it has come or gone; what the run already does changes nothing.
    """

    add: list[str] = Field([])
    """Datasets that the run began without; a branch of its own starts fresh, with its own reference energies."""
    drop: list[str] = Field([])
    """Datasets that the run began with and that `datasets` no longer names; the last checkpoint that holds them is kept
    as `with-DATASET`."""


class TrainOptions(Keys):
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
    from its start. Leave room for two steps, an evaluation and a checkpoint."""
    resume: ResumeOptions = ResumeOptions()
    log_every: int = Field(20, ge=1)
    """Steps between lines of training errors."""
    device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    """Where the model lives: `cuda` (NVIDIA and AMD), `xpu` (Intel) or `cpu`; `auto` takes an accelerator if there is
    one, each rank of a node its own."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the process; null leaves the choice to PyTorch. Small models are fastest with 1."""
    precision: Literal["fp32", "fp64", "bf16", "tf32"] = "fp32"
    """bf16: products of a step in bfloat16; weights, geometry, sums and losses in float32. tf32: float32, but products
    round what they multiply to 10 bits of mantissa (NVIDIA GPUs since Ampere). Evaluations never round."""
    slow_precision: Literal["refuse", "allow"] = "refuse"
    """Whether to train where products of `precision: bf16` are slower than those of fp32, as on processors without
    bfloat16 instructions. `refuse` measures both when training starts (less than 0.1 s)."""
    checkpointing: Literal["none", "layers"] = "none"
    """`layers`: of every layer of the encoder only what enters it is kept for the backward pass, and the rest is
    calculated again there: much less memory, about a third more time; the same result to the bit."""
    compile: Literal["none", "default", "cuda-graphs"] = "none"
    """Passes of a training step as a compiled program (`torch.compile`), made in the first step, which then takes
    minutes. `default` makes one for all sizes of batches, on a GPU by Triton, on a CPU by a C++ compiler, which must be
    there; `cuda-graphs` also records what it does on an NVIDIA GPU, for each of a few sizes that batches are filled up
    to. The same numbers to rounding. Evaluation and trained models are not compiled."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the initial weights and of the order of structures."""
    edge_cache: float = Field(1.0, ge=0)
    """GB of memory per dataset for keeping its edges instead of finding them again each pass."""
