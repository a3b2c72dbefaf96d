"""A context in which models run only to count their operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_COUNTING: ContextVar[bool] = ContextVar("counting", default=False)


@contextmanager
def counting() -> Iterator[None]:
    """Inside, models use plain operations without padding and recomputation, so that the count is that of the cheapest
    form, without the additional operations of the form that runs."""
    token = _COUNTING.set(True)
    try:
        yield
    finally:
        _COUNTING.reset(token)


def is_counting() -> bool:
    """Whether operations are counted; never in compiled models, since compilers do not support context variables."""
    return not torch.compiler.is_compiling() and _COUNTING.get()
