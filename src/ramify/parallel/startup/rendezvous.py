"""How the processes of a run meet, and meet again after some of them were started anew.

Rank 0 keeps a store at the address and port that the launcher states (torchrun keeps one itself). A rank counts once it
has shown that it knows the secret of the run (`ramify.parallel.startup.secret`), and believes rank 0 once that has
shown the same. From then on the watchdog watches, also while the process group is made."""

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
"""How long a collective may take: the watchdog ends a run that hangs (`ramify.parallel.watchdog`); while a rank is only
slow, no limit may."""

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
"""By kind of device; nccl is RCCL on AMD. Plain data always goes through Gloo."""

LOOKS = 0.01, 0.25
"""Seconds between the first two looks at what the store holds, and at most: the first rank must not be kept busy by
thousands of others that look."""


@contextmanager
def connect(launch_env: LaunchEnv, device: torch.device, timeout: float) -> Iterator[World]:
    """The processes of a run together, until the end of the `with`; one alone is its own world.

    Args:
        site: of this process.
        device: of this process; it chooses the backend.
        timeout: seconds to wait for the others to come, and for the watchdog.

    Raises:
        RamifyError: the others do not come or do not know the secret, the port is taken, or a rank is lost later.
    """
    if launch_env.world == 1:
        yield World(device=device)
        return
    stated = os.environ.get(interfaces.GLOO)
    met = _meet(launch_env, timeout)
    with Watchdog(launch_env.rank, launch_env.world, met.watched, timeout) as watchdog:
        try:
            with watchdog.waiting():
                dist.init_process_group(
                    BACKENDS[device.type],
                    store=met.store,
                    rank=launch_env.rank,
                    world_size=launch_env.world,
                    timeout=NO_LIMIT,
                )
            yield World(rank=launch_env.rank, size=launch_env.world, device=device, watchdog=watchdog)
        except RuntimeError as error:
            if not _is_of_a_sum(error):
                raise
            reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]  # without lines of C++
            raise RamifyError(
                f"rank {launch_env.rank} of {launch_env.world} has lost another rank at {watchdog.place}: {reason}",
                fix="look for the first error that another rank gave; then go on from the last checkpoint with "
                "`ramify train --resume`",
            ) from error
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            if stated is None:
                os.environ.pop(interfaces.GLOO, None)  # another world may need another interface


def _is_of_a_sum(error: RuntimeError) -> bool:
    """Whether ranks have lost each other: PyTorch's own error, or Gloo's, which has no type of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class _Met:
    """What the ranks share once they have met.

    Attributes:
        store: for the process group.
        watched: for the watchdog, on a connection of its own.
    """

    def __init__(self, store: Store, own: Store, prefix: str) -> None:
        self.store, self.watched = PrefixStore(prefix, store), PrefixStore(f"{prefix}/own", own)


def _meet(launch_env: LaunchEnv, timeout: float) -> _Met:
    """Brings the ranks together, and chooses the interface that Gloo listens at."""
    where, secret = f"{launch_env.address}:{launch_env.port}", find_secret(launch_env)
    try:
        store, own = _open_store(launch_env, timeout)
        greeting = _Greeting(store, launch_env, secret, timeout)
        start, answer = greeting.lead() if launch_env.rank == 0 else greeting.follow()
    except (OSError, RuntimeError, ValueError) as error:  # torch.distributed's own errors are RuntimeErrors
        raise RamifyError(
            f"rank {launch_env.rank} of {launch_env.world} ({launch_env.launcher}) "
            f"did not meet the others at {where}: {error}{_says_loopback(launch_env)}",
            fix="see that all processes run and reach that host and port; set MASTER_ADDR and MASTER_PORT to choose "
            "others, and parallel.timeout to wait longer",
        ) from error
    if launch_env.rank == 0 and answer["nodes"] > 1 and not secret.is_private:
        sys.stderr.write(
            f"note: the ranks are on {answer['nodes']} nodes and share no secret: whoever reaches {where} can take the "
            f"place of a rank. Set {VARIABLE} to the same random text for all of them (docs/clusters.md, Security)\n"
        )
    _choose_interface(launch_env, answer)
    store.set_timeout(NO_LIMIT)  # of what ranks say while the process group is made: the watchdog sees to them
    return _Met(store, own, f"ramify/{secret.sign('prefix', start)}")


def _open_store(launch_env: LaunchEnv, timeout: float) -> tuple[Store, Store]:
    """The store of the run, and a second connection to it; rank 0 keeps it, where torchrun does not."""
    patience = timedelta(seconds=timeout)
    keeps = launch_env.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    listener = (
        interfaces.listen(launch_env.address, launch_env.port, one_node=launch_env.one_node).detach() if keeps else None
    )

    def connect(listener: int | None = None) -> Store:
        return dist.TCPStore(  # type: ignore[attr-defined]
            launch_env.address,
            launch_env.port,
            is_master=listener is not None,
            timeout=patience,
            wait_for_workers=False,
            master_listen_fd=listener,
        )

    return connect(listener), connect()


class _Greeting:
    """Ranks find each other in a store, and show one another that they know the secret of the run.

    torchrun keeps its store when it starts the ranks anew, with all keys of the start before in it: a rank that reads
    those connects to processes that are gone, and waits. Its count of restarts does not tell starts apart: each node
    counts its own. So each rank leaves a fresh word and waits for an answer to that very word; the first rank answers
    every word that it finds, old ones in vain, until each of the others has shown that it belongs to the run.

    A rank leaves its word again and again: a stranger may have written over it.
    """

    def __init__(self, store: Store, launch_env: LaunchEnv, secret: Secret, timeout: float) -> None:
        self._store, self._site, self._secret, self._timeout = store, launch_env, secret, timeout
        self._deadline = time.monotonic() + timeout

    def lead(self) -> tuple[str, dict[str, Any]]:
        """Rank 0's part: the word of this start, and what is to be known of all ranks."""
        start, missing = uuid4().hex, set(range(1, self._site.world))
        answered, strangers = set[str](), set[int]()
        about = {0: _about(self._site)}
        while missing:
            for rank in sorted(missing):
                word = self._read(f"word/{rank}")
                if word and word not in answered:
                    self._write(f"answer/{word}", start, "answer", word)
                    answered.add(word)
                shown = self._read(f"{start}/met/{rank}")
                if shown and (told := self._checked(shown, "met", start, rank)) is not None:
                    about[rank] = told
                    missing.discard(rank)
                elif shown:
                    strangers.add(rank)
            if missing and time.monotonic() > self._deadline:
                text = self._who_is_missing(missing, strangers)
                self._write(f"{start}/go", {"error": text}, "go", start)
                raise RuntimeError(text)
            time.sleep(LOOKS[0])
        here = about[0]["node"]
        others = [told["address"] for told in about.values() if told["node"] != here and told["address"]]
        answer = {"nodes": len({told["node"] for told in about.values()}), "peer": others[0] if others else ""}
        self._write(f"{start}/go", answer, "go", start)
        return start, answer

    def follow(self) -> tuple[str, dict[str, Any]]:
        """The part of every other rank."""
        rank, word = self._site.rank, uuid4().hex
        given = self._wait(f"answer/{word}", lambda: self._store.set(f"ramify/word/{rank}", word), "rank 0")
        start = self._believed(given, "answer", word)
        about = _about(self._site)
        given = self._wait(
            f"{start}/go", lambda: self._write(f"{start}/met/{rank}", about, "met", start, rank), "all ranks"
        )
        answer = dict(self._believed(given, "go", start))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return start, answer

    def _wait(self, key: str, repeat: Callable[[], None], whom: str) -> str:
        """What the store has under a key, as soon as it is there."""
        pause = LOOKS[0]
        while not (found := self._read(key)):
            if time.monotonic() > self._deadline:
                raise RuntimeError(f"nothing from {whom} in {self._timeout:g} s")
            repeat()
            time.sleep(pause)
            pause = min(2 * pause, LOOKS[1])
        return found

    def _read(self, key: str) -> str:
        """Empty where there is nothing."""
        key = f"ramify/{key}"
        return self._store.get(key).decode(errors="replace") if self._store.check([key]) else ""

    def _write(self, key: str, value: Any, *topic: object) -> None:
        """A message with its signature."""
        self._store.set(f"ramify/{key}", json.dumps([value, self._secret.sign(*topic, value)]))

    def _checked(self, text: str, *topic: object) -> Any:
        """The value of a message; None where it is not signed by this run's secret."""
        try:
            value, signature = json.loads(text)
        except (ValueError, TypeError):
            return None
        return value if self._secret.has_signed(signature, *topic, value) else None

    def _believed(self, text: str, *topic: object) -> Any:
        value = self._checked(text, *topic)
        if value is None:
            raise RamifyError(
                f"rank {self._site.rank} of {self._site.world}: whoever answers as rank 0 at {self._site.address}:"
                f"{self._site.port} does not know the secret of this run ({self._secret.source})",
                fix=f"choose another MASTER_PORT if another program holds it; set {VARIABLE} to the same random text "
                "for all ranks",
            )
        return value

    def _who_is_missing(self, missing: set[int], strangers: set[int]) -> str:
        text = f"nothing from rank {', '.join(map(str, sorted(missing - strangers)[:8]))} in {self._timeout:g} s"
        if not strangers:
            return text
        named = f"rank {', '.join(map(str, sorted(strangers)[:8]))}: who came does not know the secret of this run "
        return f"{named}({self._secret.source}){f'; {text}' if missing - strangers else ''}"


def _about(launch_env: LaunchEnv) -> dict[str, str]:
    """What the others must know of this process: its node, and the address it comes from."""
    return {"node": interfaces.node(), "address": interfaces.address_towards(launch_env.address)}


def _choose_interface(launch_env: LaunchEnv, answer: dict[str, Any]) -> None:
    """Tells Gloo which interface to listen at: the one that leads to the others. Whatever the user has set stays.

    Raises:
        RamifyError: it is one that other nodes do not reach.
    """
    several, stated = answer["nodes"] > 1, os.environ.get(interfaces.GLOO)
    if not stated:
        reached = launch_env.address if several else LOOPBACK[0]
        if launch_env.rank == 0 and several:
            reached = answer["peer"]
        if name := interfaces.interface_of(interfaces.address_towards(reached)):
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


def _says_loopback(launch_env: LaunchEnv) -> str:
    """Why nobody else comes, where that can be seen from here."""
    if launch_env.one_node or not interfaces.is_loopback(launch_env.address):
        return ""
    addresses = ", ".join(sorted({where[0] for _, where in interfaces.resolve(launch_env.address, 0)}))
    return f". {launch_env.address} resolves to {addresses} on this host, a loopback address that no other node reaches"
