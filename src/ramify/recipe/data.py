"""Recipe keys of data loading during a run."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Keys


class DataOptions(Keys):
    """Storage of structures during a run, and threads that make batches. These keys do not change the result of a
    training. See docs/data.md."""

    store: Literal["auto", "mapped", "adios", "distributed"] = "auto"
    """`mapped`: memory-mapped from one file per column; `adios`: read from one ADIOS2 file into memory that the ranks
    of a node share; `auto`: the form in which each store was written; `distributed`: distributed over the memory of the
    ranks that train on it, which read from one another by MPI (stores of either form)."""
    preload: bool = False
    """Whether to read mapped stores into shared memory before the run begins: parallel file systems are fast at
    sequential and slow at random reads."""
    width: int | None = Field(None, ge=1)
    """For `store: distributed`: minimum number of consecutive ranks that hold one copy of a dataset together; null: all
    ranks that train on it. A smaller number needs more memory and less communication."""
    workers: int = Field(1, ge=1)
    """Threads of each rank that prefetch batches."""
    ahead: int = Field(2, ge=1)
    """Number of steps that each of these threads may prefetch."""
