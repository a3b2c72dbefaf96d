"""Recipe keys of parallel runs."""

from typing import Literal

from pydantic import Field, model_validator

from ramify.recipe.base import Keys, Rank


class MachineOptions(Keys):
    """Performance of the machine, for `ramify plan` and `placement: auto` only.

    The defaults describe one of the eight logical GPUs of a Frontier node: four 200 Gb/s links shared by eight, and
    about 40 % of 23.9 TFLOP/s (vector float32). Measure your machine if two placements are predicted to be similar.
    """

    tflops: float = Field(10.0, gt=0)
    """TFLOP/s of the matrix products of a step on one rank."""
    bandwidth: float = Field(12.5, gt=0)
    """GB/s sent by one rank during an all-reduce of gradients over all ranks."""
    latency: float = Field(10.0, ge=0)
    """Microseconds of latency between two ranks."""


class ParallelOptions(Keys):
    """Distribution of a run over processes (ranks). These keys do not change the result of a training."""

    placement: Literal["auto", "replicated", "per-branch", "per-branch-even", "balanced"] | dict[str, list[Rank]] = (
        "auto"
    )
    """Which ranks host which branches. `replicated`: every rank hosts all branches (the paper's MTL-base).
    `per-branch`, `per-branch-even`: each rank hosts one branch, in groups sized by work or equal groups (the paper's
    MTL-par); with few ranks, each hosts several whole branches. `balanced`: equal work on every rank, so that some
    ranks host two branches. `auto`: the placement predicted to be fastest that fits into memory. Or
    `{branch: [ranks]}`."""
    shard: Literal["none", "encoder"] = "none"
    """`encoder`: weights, gradients and optimizer state of the encoder are sharded over the ranks (FSDP2); the weights
    are gathered for the forward and backward passes of a step."""
    shard_ranks: int | None = Field(None, ge=2)
    """Number of consecutive ranks (for example those of a node) that share one copy of a sharded encoder; the number of
    ranks must be a multiple of it. null: all ranks."""
    memory: float | None = Field(None, gt=0)
    """GB (10⁹ bytes) of memory of each rank, for `auto` and `ramify plan`; null: no limit."""
    micro_batch_atoms: int | None = Field(None, ge=1)
    """Maximum number of atoms of a micro-batch: a rank with more atoms in a step splits them into several micro-batches
    and accumulates gradients. A single larger structure is one micro-batch."""
    micro_batch_edges: int | None = Field(None, ge=1)
    """Maximum number of edges of a micro-batch."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that ranks wait for one another: for all ranks to connect, and then for a rank that is idle or does not
    respond. There is no limit for a rank that is working."""
    machine: MachineOptions = MachineOptions()

    @model_validator(mode="after")
    def _sharded_if_shared(self) -> "ParallelOptions":
        if self.shard == "none" and self.shard_ranks is not None:
            raise ValueError("shard_ranks: nothing is sharded with `shard: none`; set `shard: encoder`")
        return self
