"""What `train.precision` means: the type of the numbers of a step, and how its matrix products are taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from ramify.errors import RamifyError

Name = Literal["fp32", "fp64", "bf16", "tf32"]

AMPERE = (8, 0)
"""The first NVIDIA architecture (compute capability) whose products can round their inputs to TF32."""


@dataclass(frozen=True)
class Precision:
    """Of the steps of a run on one device. Whatever is done outside them, evaluations too, is not touched by it.

    Attributes:
        name: as `train.precision`.
        device: of this process.

    Raises:
        RamifyError: the device has no such products.
    """

    name: Name
    device: torch.device

    def __post_init__(self) -> None:
        if self.name == "tf32" and not _has_tf32(self.device):
            raise RamifyError(
                f"train.precision: tf32 is for NVIDIA GPUs of compute capability 8.0 and later; this run is on "
                f"{_described(self.device)}",
                fix="set train.precision to fp32, or to bf16 for faster products",
            )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, positions and labels."""
        return torch.float64 if self.name == "fp64" else torch.float32

    @contextmanager
    def products(self) -> Iterator[None]:
        """Around all that may be rounded to TF32: forward and backward passes, and the product they are compared with.

        A setting of the whole process, so it is put back.
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
        """Around forward passes. bf16: products in bfloat16; the model itself keeps geometry, sums and energies in
        float32, and the backward pass follows the forward one."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.name == "bf16")


def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= AMPERE


def _described(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"device {device.type}"
