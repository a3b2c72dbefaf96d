"""`World`: this process among those of a run, and what they do together."""

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
"""What is summed over the world besides gradients is counted as: once per step its norm, losses and flags."""
GATHERED = "gathered"
"""What `World.gather` is counted as: errors on validation splits, and what is agreed on around checkpoints."""


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """This process among those of a run; by default one by itself, which makes no process group.

    `ramify.parallel.startup.rendezvous.connect` makes that of several; `ramify.parallel.layout.Layout` knows what each
    hosts.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
        device: where the model of this process lives.
        watchdog: ends a run that hangs; told of all waiting for others.
        traffic: bytes handed to collectives by this rank so far, by what they were (`CONTROL`, `GATHERED`, ...).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watchdog: Watchdog = field(default_factory=Watchdog)
    traffic: Counter[str] = field(default_factory=Counter)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes the log and speaks to the terminal."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, by rank, on all ranks.

        Args:
            value: plain data: what JSON holds, of any depth, with text as keys. It travels as JSON, also on one
                process: tuples come back as lists, numbers to the bit.

        Raises:
            TypeError: it is something else.
            RamifyError: a rank has sent what is no JSON: it is none of this program's.
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
            pieces = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(pieces, padded)
        return [bytes(p[: int(n)].numpy()) for p, n in zip(pieces, lengths, strict=True)]

    def sum_over_world(self, tensor: Tensor, what: str = CONTROL) -> None:
        """Adds up `tensor` over all ranks, in place, to the same bits on all; its bytes are counted as `what`."""
        if self.size > 1:
            self.traffic[what] += tensor.numel() * tensor.element_size()
            with self.watchdog.waiting():
                dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Returns when all ranks have come here."""
        self.sum_over_world(torch.zeros(1))  # on the CPU: unlike that of an accelerator it waits for the sum itself


def encode(value: Any) -> bytes:
    """Plain data as JSON.

    Raises:
        TypeError: JSON has no such value, or would change it.
    """
    _require_plain(value)
    return json.dumps(value).encode()


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        if other := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"ranks exchange plain data; the key {other[0]!r} is not text")
        for held in value.values():
            _require_plain(held)
    elif isinstance(value, list | tuple):
        for held in value:
            _require_plain(held)
    elif not isinstance(value, str | int | float | None):
        raise TypeError(f"ranks exchange plain data, not {type(value).__name__}")
