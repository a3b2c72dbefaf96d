"""Programs as on a processor without some instructions: variables make PyTorch and oneDNN avoid them."""

import platform

import pytest

WITHOUT_BF16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Environment of a program for which bfloat16 products are computed without instructions for them."""

masks_work = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets can be masked on x86-64 only"
)
