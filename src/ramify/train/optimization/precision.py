"""Implements `train.precision`: the data type of a step, and the precision of its matrix products."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from ramify.errors import RamifyError
from ramify.recipe import TrainOptions
from ramify.train.optimization.product_rates import ProductRates, product_rates

Name = Literal["fp32", "fp64", "bf16", "tf32"]

AMPERE = (8, 0)
"""The first NVIDIA architecture (compute capability) whose products can round their inputs to TF32."""


@dataclass(frozen=True)
class Precision:
    """The precision of the steps of a run on one device; computations outside of steps, e.g. evaluations, ignore it.

    Attributes:
        name: value of `train.precision`.
        device: of this process.

    Raises:
        RamifyError: the device does not support such products.
    """

    name: Name
    device: torch.device

    def __post_init__(self) -> None:
        if self.name == "tf32" and not _has_tf32(self.device):
            raise RamifyError(
                f"train.precision: tf32 is for NVIDIA GPUs of compute capability 8.0 and later; this run is on "
                f"{_described(self.device)}",
                fix=f"set train.precision to fp32{_or_bf16(self.device)}",
            )

    @property
    def dtype(self) -> torch.dtype:
        """Data type of weights, positions and labels."""
        return torch.float64 if self.name == "fp64" else torch.float32

    @contextmanager
    def products(self) -> Iterator[None]:
        """Context of all products that may be rounded to TF32: forward and backward passes, and reference benchmarks.

        A setting of the whole process; it is restored at the end.
        """
        if self.name != "tf32":
            yield
            return
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
        try:
            yield
        finally:
            matmul.fp32_precision = before

    def forward(self) -> torch.autocast:
        """Context of forward passes. With bf16, products are in bfloat16; the model keeps geometry, sums and energies
        in float32, and the backward pass uses the types of the forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.name == "bf16")


def require_fast_products(options: TrainOptions, device: torch.device) -> None:
    """Refuses to train with bfloat16 products on a device where they are slower than float32, unless the recipe allows
    it. Measures the rates only where the recipe sets bf16 and does not allow slow products.

    Raises:
        RamifyError: see `require_fast`.
    """
    if options.precision == "bf16" and options.slow_precision == "refuse":
        require_fast(product_rates(device), device)


def require_fast(rates: ProductRates, device: torch.device) -> None:
    """Refuses rates at which bfloat16 is slower than float32.

    Raises:
        RamifyError: it is.
    """
    if rates.bf16_is_slower:
        raise RamifyError(
            f"train.precision: bf16 is slower than fp32 on {_described(device)}: matrix products reach "
            f"{rates.bf16 / 1e9:.3g} GFLOP/s in bfloat16 and {rates.fp32 / 1e9:.3g} GFLOP/s in float32 (measured now)",
            fix="set train.precision to fp32, or train.slow_precision to allow to train with bf16 anyway",
        )


def _or_bf16(device: torch.device) -> str:
    """Recommends bf16 where it is faster."""
    rates = product_rates(device)
    return "" if rates.bf16_is_slower else f", or to bf16, whose products are {rates.speedup:.1f} times as fast here"


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= AMPERE


def _described(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type}"
