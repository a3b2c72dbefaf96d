"""Tests that need a C++ compiler, and tests as on a machine without one."""

import pytest
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler


def _is_here() -> bool:
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _is_here(), reason="there is no C++ compiler")


def hide_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch finds no compiler during the test."""

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
