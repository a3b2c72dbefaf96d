"""`World`: the ranks of a run and their collectives."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ramify.errors import RamifyError
from ramify.parallel.watchdog import Watchdog

CONTROL = "control"
"""Traffic key of sums over the world other than gradients: once per step its norm, losses and flags."""
GATHERED = "gathered"
"""Traffic key of `World.gather`: errors on validation splits, and the synchronisation of checkpoints."""


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """This process and the number of processes of a run; by default a single process, without a process group.

    `ramify.parallel.startup.rendezvous.connect` creates that of several processes; `ramify.parallel.layout.Layout` adds
    the branches of each.

    Attributes:
        rank: this process, from 0.
        size: number of processes.
        device: of the model of this process.
        watchdog: ends a run that hangs; notified of every wait for other ranks.
        traffic: bytes passed to collectives by this rank so far, by kind (`CONTROL`, `GATHERED`, ...).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watchdog: Watchdog = field(default_factory=Watchdog)
    traffic: Counter[str] = field(default_factory=Counter)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank zero, which writes the log and prints to the terminal."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, by rank, on all ranks.

        Args:
            value: plain data: values that JSON can represent, of any depth, with text as keys. It is sent as JSON, also
                in a single process: tuples become lists, numbers keep all their bits.

        Raises:
            TypeError: it is not plain data.
            RamifyError: a rank has sent bytes that are not JSON: it is not a rank of this program.
        """
        found = []
        for rank, content in enumerate(self.gather_bytes(encode(value))):
            try:
                found.append(json.loads(content))
            except ValueError:
                raise RamifyError(
                    f"rank {rank} of {self.size} sent {len(content)} bytes that are not JSON: another program has "
                    "taken its place, or another version of this one",
                    fix="start all ranks with one version of ramify; see Security in docs/clusters.md",
                ) from None
        return found

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """`content` of every rank, by rank, on all ranks."""
        if self.size == 1:
            return [content]
        self.traffic[GATHERED] += len(content)
        with self.watchdog.waiting():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(content)]))
            longest = max(int(length) for length in lengths)
            padded = torch.frombuffer(bytearray(content.ljust(longest)), dtype=torch.uint8)
            contents = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(contents, padded)
        return [bytes(c[: int(n)].numpy()) for c, n in zip(contents, lengths, strict=True)]

    def sum_over_world(self, tensor: Tensor, what: str = CONTROL) -> None:
        """Sums `tensor` over all ranks, in place; bit-identical on all. Its bytes are counted as `what`."""
        if self.size > 1:
            self.traffic[what] += tensor.numel() * tensor.element_size()
            with self.watchdog.waiting():
                dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Returns when all ranks have reached it."""
        self.sum_over_world(torch.zeros(1))  # on the CPU: unlike on an accelerator, the host waits for the sum


def encode(value: Any) -> bytes:
    """Plain data as JSON.

    Raises:
        TypeError: JSON cannot represent the value, or would change it.
    """
    _require_plain(value)
    return json.dumps(value).encode()


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        if other := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"ranks exchange plain data; the key {other[0]!r} is not text")
        for item in value.values():
            _require_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_plain(item)
    elif not isinstance(value, str | int | float | None):
        raise TypeError(f"ranks exchange plain data, not {type(value).__name__}")
