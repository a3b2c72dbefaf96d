"""Rendezvous of the processes of a run, also after some of them were restarted.

Rank zero hosts a store at the address and port that the launcher sets (torchrun hosts one itself). Every rank must
prove that it knows the secret of the run (`ramify.parallel.startup.secret`), and so must rank zero to the others. The
watchdog is active from then on, also while the process group is created.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from ramify.errors import RamifyError
from ramify.parallel.startup import interfaces
from ramify.parallel.startup.launch import LOOPBACK, LaunchEnv
from ramify.parallel.startup.secret import VARIABLE, Secret, find_secret
from ramify.parallel.watchdog import Watchdog
from ramify.parallel.world import World

NO_LIMIT = timedelta(days=30)
"""Timeout of collectives: the watchdog ends a run that hangs (`ramify.parallel.watchdog`); slow ranks must not be ended
by a timeout of PyTorch."""

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""Backends by device type; nccl is RCCL on AMD. Plain data are always sent with Gloo."""

POLL_INTERVALS = 0.01, 0.25
"""First and largest number of seconds between two polls of the store: rank zero must not be overloaded by the polls of
thousands of other ranks."""


@contextmanager
def connect(launch_env: LaunchEnv, device: torch.device, timeout: float) -> Iterator[World]:
    """Connects the processes of a run inside of a `with` block; a single process is a world of size 1.

    Args:
        launch_env: of this process.
        device: of this process; its type determines the backend.
        timeout: seconds to wait for the other ranks; also that of the watchdog.

    Raises:
        RamifyError: a rank does not connect or does not know the secret, the port is taken, or a rank is lost later.
    """
    if launch_env.world == 1:
        yield World(device=device)
        return
    interface_set = interfaces.GLOO in os.environ
    stores = _rendezvous(launch_env, timeout)
    with Watchdog(launch_env.rank, launch_env.world, stores.watchdog_store, timeout) as watchdog:
        try:
            with watchdog.waiting():
                dist.init_process_group(
                    BACKENDS[device.type],
                    store=stores.store,
                    rank=launch_env.rank,
                    world_size=launch_env.world,
                    timeout=NO_LIMIT,
                )
            yield World(rank=launch_env.rank, size=launch_env.world, device=device, watchdog=watchdog)
        except RuntimeError as error:
            if not _is_collective_error(error):
                raise
            reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[
                0
            ]  # without the lines of the C++ stack
            raise RamifyError(
                f"rank {launch_env.rank} of {launch_env.world} has lost another rank at {watchdog.place}: {reason}",
                fix="look for the first error message of another rank; then resume from the last checkpoint with "
                "`ramify train --resume`",
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            if not interface_set:
                os.environ.pop(interfaces.GLOO, None)  # another world may need another interface


def _is_collective_error(error: RuntimeError) -> bool:
    """Whether a collective has failed: an error of PyTorch, or of Gloo, which has no exception type of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class _Stores:
    """The stores of a run.

    Attributes:
        store: for the process group.
        watchdog_store: for the watchdog, with a connection of its own.
    """

    def __init__(self, store: Store, second: Store, prefix: str) -> None:
        self.store, self.watchdog_store = PrefixStore(prefix, store), PrefixStore(f"{prefix}/own", second)


def _rendezvous(launch_env: LaunchEnv, timeout: float) -> _Stores:
    """Connects to the store, verifies all ranks, and sets the interface that Gloo listens on."""
    where, secret = f"{launch_env.address}:{launch_env.port}", find_secret(launch_env)
    try:
        store, second = _open_store(launch_env, timeout)
        handshake = _Handshake(store, launch_env, secret, timeout)
        start, answer = handshake.lead() if launch_env.rank == 0 else handshake.follow()
    except (OSError, RuntimeError, ValueError) as error:  # torch.distributed's own errors are RuntimeErrors
        raise RamifyError(
            f"rank {launch_env.rank} of {launch_env.world} ({launch_env.launcher}) "
            f"did not meet the others at {where}: {error}{_loopback_hint(launch_env)}",
            fix="check that all processes run and can connect to that host and port; set MASTER_ADDR and MASTER_PORT "
            "to choose others, and parallel.timeout to wait longer",
        ) from error
    if launch_env.rank == 0 and answer["nodes"] > 1 and not secret.is_private:
        sys.stderr.write(
            f"note: the ranks are on {answer['nodes']} nodes and share no secret: any program that can connect to "
            f"{where} can act as a rank. Set {VARIABLE} to the same random text for all of them (docs/clusters.md, "
            "Security)\n"
        )
    _choose_interface(launch_env, answer)
    store.set_timeout(NO_LIMIT)  # while the process group is created: the watchdog detects hangs
    return _Stores(store, second, f"ramify/{secret.sign('prefix', start)}")


def _open_store(launch_env: LaunchEnv, timeout: float) -> tuple[Store, Store]:
    """The store of the run, and a second connection to it; rank zero hosts it unless torchrun does."""
    hosts = launch_env.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = (
        interfaces.listen(launch_env.address, launch_env.port, one_node=launch_env.one_node).detach() if hosts else None
    )

    def open_connection(listener: int | None = None) -> Store:
        return dist.TCPStore(  # type: ignore[attr-defined]
            launch_env.address,
            launch_env.port,
            is_master=listener is not None,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listener,
        )

    return open_connection(listener), open_connection()


class _Handshake:
    """Handshake of the ranks through a store: each proves that it knows the secret of the run.

    torchrun keeps its store, with all keys of the previous launch, when it restarts the ranks: a rank that reads old
    keys would connect to processes that no longer exist, and wait. The restart count does not distinguish launches,
    because each node has its own. So each rank writes a new nonce (`word`) and waits for an answer to this nonce; rank
    zero answers every nonce that it finds, including old ones, until each of the other ranks has authenticated.

    A rank writes its nonce repeatedly: another program may have overwritten it.
    """

    def __init__(self, store: Store, launch_env: LaunchEnv, secret: Secret, timeout: float) -> None:
        self._store, self._env, self._secret, self._timeout = store, launch_env, secret, timeout
        self._deadline = time.monotonic() + timeout

    def lead(self) -> tuple[str, dict[str, Any]]:
        """The part of rank zero.

        Returns:
            The identifier of this launch, and the number of nodes with the address of a peer.
        """
        start, missing = uuid4().hex, set(range(1, self._env.world))
        answered, strangers = set[str](), set[int]()
        hosts = {0: _host_info(self._env)}
        while missing:
            for rank in sorted(missing):
                nonce = self._read(f"word/{rank}")
                if nonce and nonce not in answered:
                    self._write(f"answer/{nonce}", start, "answer", nonce)
                    answered.add(nonce)
                message = self._read(f"{start}/met/{rank}")
                if message and (host := self._payload(message, "met", start, rank)) is not None:
                    hosts[rank] = host
                    missing.discard(rank)
                elif message:
                    strangers.add(rank)
            if missing and time.monotonic() > self._deadline:
                text = self._missing_ranks(missing, strangers)
                self._write(f"{start}/go", {"error": text}, "go", start)
                raise RuntimeError(text)
            time.sleep(POLL_INTERVALS[0])
        own_node = hosts[0]["node"]
        others = [host["address"] for host in hosts.values() if host["node"] != own_node and host["address"]]
        answer = {"nodes": len({host["node"] for host in hosts.values()}), "peer": others[0] if others else ""}
        self._write(f"{start}/go", answer, "go", start)
        return start, answer

    def follow(self) -> tuple[str, dict[str, Any]]:
        """The part of every other rank. Returns as `lead`."""
        rank, nonce = self._env.rank, uuid4().hex
        message = self._wait(f"answer/{nonce}", lambda: self._store.set(f"ramify/word/{rank}", nonce), "rank 0")
        start = self._verified(message, "answer", nonce)
        host = _host_info(self._env)
        message = self._wait(
            f"{start}/go", lambda: self._write(f"{start}/met/{rank}", host, "met", start, rank), "all ranks"
        )
        answer = dict(self._verified(message, "go", start))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return start, answer

    def _wait(self, key: str, repeat: Callable[[], None], sender: str) -> str:
        """Polls the store for a key and returns its value; calls `repeat` after each poll without result."""
        pause = POLL_INTERVALS[0]
        while not (found := self._read(key)):
            if time.monotonic() > self._deadline:
                raise RuntimeError(f"nothing from {sender} in {self._timeout:g} s")
            repeat()
            time.sleep(pause)
            pause = min(2 * pause, POLL_INTERVALS[1])
        return found

    def _read(self, key: str) -> str:
        """The value of a key; empty where it is not set."""
        key = f"ramify/{key}"
        return self._store.get(key).decode(errors="replace") if self._store.check([key]) else ""

    def _write(self, key: str, value: Any, *topic: object) -> None:
        """Stores a message with its signature."""
        self._store.set(f"ramify/{key}", json.dumps([value, self._secret.sign(*topic, value)]))

    def _payload(self, text: str, *topic: object) -> Any:
        """The value of a message; None where it is not signed with the secret of this run."""
        try:
            value, signature = json.loads(text)
        except (ValueError, TypeError):
            return None
        return value if self._secret.has_signed(signature, *topic, value) else None

    def _verified(self, text: str, *topic: object) -> Any:
        value = self._payload(text, *topic)
        if value is None:
            raise RamifyError(
                f"rank {self._env.rank} of {self._env.world}: the process that answers as rank 0 at "
                f"{self._env.address}:{self._env.port} does not know the secret of this run ({self._secret.source})",
                fix=f"choose another MASTER_PORT if another program uses it; set {VARIABLE} to the same random text "
                "for all ranks",
            )
        return value

    def _missing_ranks(self, missing: set[int], strangers: set[int]) -> str:
        text = f"nothing from rank {', '.join(map(str, sorted(missing - strangers)[:8]))} in {self._timeout:g} s"
        if not strangers:
            return text
        refused = ", ".join(map(str, sorted(strangers)[:8]))
        named = f"rank {refused}: the process that connected does not know the secret of this run "
        return f"{named}({self._secret.source}){f'; {text}' if missing - strangers else ''}"


def _host_info(launch_env: LaunchEnv) -> dict[str, str]:
    """The node of this process, and the address of its connections to rank zero."""
    return {"node": interfaces.node(), "address": interfaces.address_towards(launch_env.address)}


def _choose_interface(launch_env: LaunchEnv, answer: dict[str, Any]) -> None:
    """Sets the interface that Gloo listens on to the one with a route to the other ranks, unless the user has set it.

    Raises:
        RamifyError: other nodes cannot reach the interface.
    """
    several = answer["nodes"] > 1
    if not os.environ.get(interfaces.GLOO):
        peer = launch_env.address if several else LOOPBACK[0]
        if launch_env.rank == 0 and several:
            peer = answer["peer"]
        if name := interfaces.interface_of(interfaces.address_towards(peer)):
            os.environ[interfaces.GLOO] = name
    name = os.environ.get(interfaces.GLOO, "")
    host = "" if name else os.uname().nodename
    if several and (name in ("lo", "lo0") or (host and interfaces.is_loopback(host))):
        what = f"{interfaces.GLOO}={name}" if name else f"the name of this host, {host},"
        raise RamifyError(
            f"rank {launch_env.rank} of {launch_env.world}: {what} leads to the loopback interface, and the ranks are "
            f"on {answer['nodes']} nodes, which cannot reach it",
            fix=f"set {interfaces.GLOO} (and NCCL_SOCKET_IFNAME on GPUs) to the network interface that leads to the "
            "other nodes, as `ip addr` names it",
        )


def _loopback_hint(launch_env: LaunchEnv) -> str:
    """An explanation where the address of rank zero is a loopback address; else empty."""
    if launch_env.one_node or not interfaces.is_loopback(launch_env.address):
        return ""
    addresses = ", ".join(sorted({address[0] for _, address in interfaces.resolve(launch_env.address, 0)}))
    return f". {launch_env.address} resolves to {addresses} on this host, a loopback address that no other node reaches"
