"""Rank, number of ranks and rendezvous address of this process, from the environment of its launcher.

Launchers are torchrun, mpiexec and srun. A process without a launcher, or the only process of one, trains alone.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ramify.errors import RamifyError

PORTS = range(12000, 32000)
"""Ports for the rendezvous where none is set: below the ephemeral ports of Linux (from 32768)."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """The variables that a launcher sets; where several names are given, the first that is set counts."""

    name: str
    rank: str
    world: str
    local_rank: tuple[str, ...]
    local_world: tuple[str, ...]


LAUNCHERS = (
    Launcher("torchrun", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)),
    Launcher(
        "mpiexec (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Launcher(  # MPICH and Intel MPI, Cray PALS, and srun --mpi=pmi2
        "mpiexec",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
    ),
    # not SLURM_NTASKS: batch scripts have it too, and a program started there without srun is a single process
    Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ()),
)
"""In order of precedence: torchrun may run inside srun, and mpiexec starts its own helpers with srun."""


@dataclass(frozen=True, slots=True)
class LaunchEnv:
    """One process of a run.

    Attributes:
        rank, world: index of this process, from 0, and number of processes.
        local_rank: index of this process on its node.
        address, port: of the rendezvous on rank zero; empty and 0 for a single process.
        launcher: name of the launcher; empty for a single process.
        one_node: whether all processes are known to run on one node.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    launcher: str = ""
    one_node: bool = field(default=False, compare=False)


def detect_launcher(environ: Mapping[str, str] = os.environ) -> LaunchEnv:
    """Reads the environment of this process.

    Raises:
        RamifyError: a variable of the launcher is missing or contradicts another, or the host of rank zero is unknown.
    """
    for launcher in LAUNCHERS:
        if launcher.world in environ or (launcher.rank in environ and launcher.name == "torchrun"):
            rank, world = _number(environ, launcher, launcher.rank), _number(environ, launcher, launcher.world)
            if not 0 <= rank < world:
                raise RamifyError(
                    f"{launcher.name}: {launcher.rank}={rank} does not fit {launcher.world}={world}", fix=_ANEW
                )
            if world == 1:
                return LaunchEnv()
            local = next((name for name in launcher.local_rank if name in environ), launcher.local_rank[0])
            local_rank = _number(environ, launcher, local)
            address, port = _rendezvous(environ, launcher, world)
            one_node = _is_one_node(environ, launcher, world) or address in LOOPBACK
            return LaunchEnv(rank, world, local_rank, address, port, launcher.name, one_node)
    return LaunchEnv()


def choose_device(wanted: str, launch_env: LaunchEnv, key: str = "train.device") -> torch.device:
    """The device of this process: `auto`, `cpu`, `cuda` (NVIDIA, AMD) or `xpu` (Intel); `key` is named in messages.

    Raises:
        RamifyError: there is no such device, or there are more processes on the node than devices.
    """
    kinds = [kind for kind in ("cuda", "xpu") if getattr(torch, kind).is_available()]
    kind = (kinds or ["cpu"])[0] if wanted == "auto" else wanted
    if kind == "cpu":
        return torch.device("cpu")
    if kind not in kinds:
        raise RamifyError(f"{key}: {kind}, but PyTorch {torch.__version__} finds none here", fix=f"set {key}: auto")
    found = getattr(torch, kind).device_count()
    if launch_env.local_rank >= found > 1:
        raise RamifyError(
            f"rank {launch_env.rank} is process {launch_env.local_rank} (from 0) of its node, "
            f"which has {found} devices",
            fix=f"start at most {found} processes on each node",
        )
    # one device: the launcher makes only its own visible to each process
    device = torch.device(kind, launch_env.local_rank if found > 1 else 0)
    getattr(torch, kind).set_device(device)
    return device


_ANEW = "start all processes by one torchrun, srun or mpiexec"


def _number(environ: Mapping[str, str], launcher: Launcher, name: str) -> int:
    if name not in environ:
        have = next(n for n in (launcher.world, launcher.rank) if n in environ)
        raise RamifyError(
            f"{have} is set, as {launcher.name} does, but {name} is not",
            fix=f"{_ANEW}, or unset {have} to train alone",
        )
    try:
        return int(environ[name])
    except ValueError:
        raise RamifyError(f"{name}={environ[name]} is not a whole number", fix=_ANEW) from None


def _rendezvous(environ: Mapping[str, str], launcher: Launcher, world: int) -> tuple[str, int]:
    """Host of rank zero and a port there: as set, else derived from variables that are the same in all processes."""
    if launcher.name == "torchrun":
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in environ:
                raise RamifyError(f"{launcher.rank} and {launcher.world} are set, but {name} is not", fix=_ANEW)
    one_node = _is_one_node(environ, launcher, world)
    address = environ.get("MASTER_ADDR") or (LOOPBACK[0] if one_node else _first_node(environ))
    if not address:
        raise RamifyError(
            f"{launcher.name} started {world} processes on several nodes, but the host of rank 0 is not set",
            fix="set MASTER_ADDR to the host of rank 0, and MASTER_PORT to a free port there",
        )
    if "MASTER_PORT" in environ:
        return address, _number(environ, launcher, "MASTER_PORT")
    job = "/".join(environ[name] for name in JOB if name in environ) or str(os.getppid())  # the launcher's own process
    digest = hashlib.blake2b(job.encode(), digest_size=8).digest()
    return address, PORTS[int.from_bytes(digest, "little") % len(PORTS)]


def _is_one_node(environ: Mapping[str, str], launcher: Launcher, world: int) -> bool:
    """Whether variables of the launcher show that all processes run on one node."""
    return any(environ.get(name) == str(world) for name in launcher.local_world) or (
        launcher.name == "srun" and environ.get("SLURM_STEP_NUM_NODES") == "1"
    )


LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Loopback addresses: a process reaches them only on its own node."""

JOB = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PBS_JOBID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
"""Variables that identify this job and this launch within it, the same in all its processes."""


def _first_node(environ: Mapping[str, str]) -> str:
    """The first node of the job, on which schedulers start rank zero; empty where it is unknown."""
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if name in environ:
            return first_of_nodelist(environ[name])
    if "PBS_NODEFILE" in environ:
        return Path(environ["PBS_NODEFILE"]).read_text(encoding="utf-8").split()[0]
    return ""


def first_of_nodelist(nodes: str) -> str:
    """The first host of Slurm's short form: `frontier[00123-00130,00200],login1` -> `frontier00123`."""
    matched = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    assert matched is not None  # matches anything
    return "".join(part or "" for part in matched.groups())
