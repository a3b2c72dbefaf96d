"""Recipe keys of spreading a run over processes."""

from typing import Literal

from pydantic import Field, model_validator

from ramify.recipe.base import Keys, Rank


class MachineOptions(Keys):
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


class ParallelOptions(Keys):
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
    """Seconds that ranks wait for one another: for all to come, and then for one that does nothing or gives no sign of
    life. A rank that works is waited for however long that takes."""
    machine: MachineOptions = MachineOptions()

    @model_validator(mode="after")
    def _cut_up_if_shared(self) -> "ParallelOptions":
        if self.shard == "none" and self.shard_ranks is not None:
            raise ValueError("shard_ranks: nothing is cut up with `shard: none`; set `shard: encoder`")
        return self
