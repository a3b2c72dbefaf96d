"""Rank, number of ranks and rendezvous address from the variables of launchers, and the device of each rank."""

from pathlib import Path

import pytest
import torch

from ramify.errors import RamifyError
from ramify.parallel.startup.launch import PORTS, LaunchEnv, choose_device, detect_launcher, first_of_nodelist

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29400",
}
SBATCH = {
    "SLURM_JOB_ID": "417",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "frontier[00123-00130,00200]",
}
"""What a batch script has: the whole job's, before srun starts anything."""
SRUN = SBATCH | {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "frontier[00125-00126]",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PALS = {"PMI_RANK": "13", "PMI_SIZE": "24", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "12", "PBS_JOBID": "9.aurora"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-7@1",
}


def test_torchrun() -> None:
    assert detect_launcher(TORCHRUN) == LaunchEnv(5, 8, 1, "n1", 29400, "torchrun")
    assert detect_launcher(SRUN | TORCHRUN) == LaunchEnv(
        5, 8, 1, "n1", 29400, "torchrun"
    )  # started by srun, one per node


def test_srun() -> None:
    site = detect_launcher(SRUN)
    assert (site.rank, site.world, site.local_rank, site.address) == (5, 8, 1, "frontier00125")
    assert site.port in PORTS
    assert detect_launcher(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port == site.port
    assert detect_launcher(SRUN | {"SLURM_STEP_ID": "3"}).port != site.port
    stated = detect_launcher(SRUN | {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "1234"})
    assert (stated.address, stated.port) == ("elsewhere", 1234)


def test_srun_with_pmi() -> None:
    """srun --mpi=pmi2 sets the rank twice, but not the local rank."""
    site = detect_launcher(SRUN | {"PMI_RANK": "5", "PMI_SIZE": "8"})
    assert (site.rank, site.world, site.local_rank, site.address) == (5, 8, 1, "frontier00125")


def test_mpiexec(tmp_path: Path) -> None:
    site = detect_launcher(HYDRA)
    assert (site.rank, site.world, site.local_rank, site.address) == (1, 2, 1, "127.0.0.1")
    assert detect_launcher(HYDRA | {"PMI_RANK": "0", "MPI_LOCALRANKID": "0"}).port == site.port
    site = detect_launcher(OPEN_MPI)
    assert (site.rank, site.world, site.local_rank, site.address) == (1, 2, 1, "127.0.0.1")
    assert site.port in PORTS
    (tmp_path / "nodes").write_text("x4217c0s3b0n0.hsn\nx4217c0s4b0n0.hsn\n")
    site = detect_launcher(PALS | {"PBS_NODEFILE": str(tmp_path / "nodes")})
    assert (site.rank, site.world, site.local_rank, site.address) == (13, 24, 1, "x4217c0s3b0n0.hsn")
    helper = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}  # hydra starts its helpers by srun
    site = detect_launcher(helper | HYDRA | {"PMI_RANK": "5", "PMI_SIZE": "8"})
    assert (site.rank, site.world, site.local_rank, site.address) == (5, 8, 1, "frontier00125")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SBATCH,  # `ramify train` in a batch script, without srun
        {"MASTER_ADDR": "n1", "MASTER_PORT": "29400"},  # exported beforehand, by habit
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # an interactive shell started by srun
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
)
def test_alone(environ: dict[str, str]) -> None:
    assert detect_launcher(environ) == LaunchEnv()


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_torchrun(missing: str) -> None:
    with pytest.raises(RamifyError, match=rf"(is|are) set.*but {missing} is not\n  fix: start all processes by one"):
        detect_launcher({key: value for key, value in TORCHRUN.items() if key != missing})


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID"])
def test_half_of_srun(missing: str) -> None:
    with pytest.raises(RamifyError, match=rf"SLURM_STEP_NUM_TASKS is set, as srun does, but {missing} is not"):
        detect_launcher({key: value for key, value in SRUN.items() if key != missing})


def test_nonsense_is_refused() -> None:
    with pytest.raises(RamifyError, match=r"torchrun: RANK=8 does not fit WORLD_SIZE=8"):
        detect_launcher(TORCHRUN | {"RANK": "8"})
    with pytest.raises(RamifyError, match=r"MASTER_PORT=http is not a whole number"):
        detect_launcher(TORCHRUN | {"MASTER_PORT": "http"})
    with pytest.raises(
        RamifyError, match=r"24 processes on several nodes, but the host of rank 0 is not set\n.*MASTER_A"
    ):
        detect_launcher(PALS)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("frontier[00123-00130,00200]", "frontier00123"),
        ("nid001", "nid001"),
        ("nid001,nid007", "nid001"),
        ("a[1,3],b[2-4]", "a1"),
        ("rack[2-3]-node", "rack2-node"),
        ("login1,frontier[00123-00130]", "login1"),
    ],
)
def test_short_forms_of_hosts(nodes: str, first: str) -> None:
    """As `scontrol show hostnames` lists them."""
    assert first_of_nodelist(nodes) == first


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", LaunchEnv()) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert choose_device("auto", LaunchEnv()) == torch.device("cpu")
    with pytest.raises(RamifyError, match=r"train.device: cuda, but PyTorch .* finds none here"):
        choose_device("cuda", LaunchEnv())
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "set_device", chosen.append)
    for count, local_rank, expected in ((6, 4, "xpu:4"), (1, 4, "xpu:0")):  # the second: each process sees but its own
        monkeypatch.setattr(torch.xpu, "device_count", lambda count=count: count)
        assert choose_device("auto", LaunchEnv(16, 24, local_rank)) == torch.device(expected) == chosen[-1]
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 4)
    with pytest.raises(RamifyError, match=r"rank 16 is process 4 \(from 0\) of its node, which has 4 devices"):
        choose_device("auto", LaunchEnv(16, 24, 4))
