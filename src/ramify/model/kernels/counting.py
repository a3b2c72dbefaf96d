"""Whether a model is only run to count the operations that it needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_COUNTING: ContextVar[bool] = ContextVar("counting", default=False)


@contextmanager
def counting() -> Iterator[None]:
    """Inside, the model takes plain operations only: no zeros beside its widths, nothing calculated a second time. What
    is counted then are the operations of the cheapest form, whatever the form that runs adds to them for speed."""
    token = _COUNTING.set(True)
    try:
        yield
    finally:
        _COUNTING.reset(token)


def is_counting() -> bool:
    """Whether it is; a compiled model never counts, and a compiler does not know of context variables."""
    return not torch.compiler.is_compiling() and _COUNTING.get()
