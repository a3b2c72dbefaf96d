"""Recipe keys of where structures are kept while a run goes on."""

from typing import Literal

from pydantic import Field

from ramify.recipe.base import Keys


class DataOptions(Keys):
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
