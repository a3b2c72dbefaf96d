"""How the processes of a run meet, and meet again after some of them were started anew."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ramify.errors import RamifyError
from ramify.parallel.launch import LaunchEnv

NO_LIMIT = timedelta(days=30)
"""How long a collective may take: the watchdog ends a run that hangs (`ramify.parallel.watchdog`); while a rank is only
slow, no limit may."""

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""By kind of device; nccl is RCCL on AMD. Plain data always goes through Gloo."""

LOOK_EVERY = 0.01
"""Seconds between two looks of the first rank at who has come."""


@contextmanager
def process_group(launch_env: LaunchEnv, device: torch.device, timeout: float) -> Iterator[Store | None]:
    """Brings the processes of a run together, until the end of the `with`; for one alone it does nothing.

    Gives a store that all ranks share, on a connection of its own (None for one alone).

    Args:
        site: of this process.
        device: of this process; it chooses the backend.
        timeout: seconds to wait for the others to come.

    Raises:
        RamifyError: the others do not come, or the port is taken.
    """
    if launch_env.world == 1:
        yield None
        return
    where, patience = f"{launch_env.address}:{launch_env.port}", timedelta(seconds=timeout)
    try:
        url = f"tcp://{where}?rank={launch_env.rank}&world_size={launch_env.world}"
        store, _, _ = next(rendezvous(url, timeout=patience))
        own = dist.TCPStore(launch_env.address, launch_env.port, is_master=False, timeout=patience)  # type: ignore[attr-defined]
        store.set_timeout(patience)
        start = f"ramify/{_agree_on_start(store, launch_env, timeout)}"
        dist.init_process_group(
            BACKENDS[device.type],
            store=PrefixStore(start, store),
            rank=launch_env.rank,
            world_size=launch_env.world,
            timeout=NO_LIMIT,
        )
    except (RuntimeError, ValueError) as error:  # torch.distributed's own errors are RuntimeErrors
        raise RamifyError(
            f"rank {launch_env.rank} of {launch_env.world} ({launch_env.launcher}) "
            f"did not meet the others at {where}: {error}",
            fix="see that all processes run and reach that host and port; set MASTER_ADDR and MASTER_PORT to choose "
            "others, and parallel.timeout to wait longer",
        ) from error
    try:
        yield PrefixStore(f"{start}/own", own)
    finally:
        dist.destroy_process_group()


def _agree_on_start(store: Store, launch_env: LaunchEnv, timeout: float) -> str:
    """A name for this start of the run, the same on all ranks and different from that of any start before.

    torchrun keeps its store when it starts the ranks anew, with all keys of the start before in it: a rank that reads
    those connects to processes that are gone, and waits. Its count of restarts does not tell starts apart: each node
    counts its own. So each rank leaves a fresh word and waits for an answer to that very word; the first rank answers
    every word that it finds, old ones in vain, until each of the others has had its answer.
    """
    word = uuid4().hex
    if launch_env.rank:
        store.set(f"ramify/word/{launch_env.rank}", word)
        start = store.get(f"ramify/answer/{word}").decode()
        store.set(f"ramify/{start}/met/{launch_env.rank}", "")
        return start
    deadline = time.monotonic() + timeout
    missing, answered = set(range(1, launch_env.world)), set[bytes]()
    while missing:
        for rank in sorted(missing):
            if not store.check([key := f"ramify/word/{rank}"]):
                continue
            if (found := store.get(key)) not in answered:
                store.set(f"ramify/answer/{found.decode()}", word)
                answered.add(found)
            if store.check([f"ramify/{word}/met/{rank}"]):
                missing.discard(rank)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"nothing from rank {', '.join(map(str, sorted(missing)[:8]))} in {timeout:g} s")
        time.sleep(LOOK_EVERY)
    return word
