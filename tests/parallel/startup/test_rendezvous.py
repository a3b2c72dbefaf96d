"""Processes connect under real launchers, and again in a store with keys of the previous start."""

import os
import re
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ramify.errors import RamifyError
from ramify.parallel.layout import Layout
from ramify.parallel.startup.launch import LaunchEnv, detect_launcher
from ramify.parallel.startup.rendezvous import connect
from ramify.parallel.watchdog import HUNG
from ramify.planning.placement import place
from tests.processes.programs import KILL, Program
from tests.processes.worlds import free_port
from tests.small import make_recipe

ROOT = Path(__file__).parents[3]
MEET = "from tests.parallel.startup.test_rendezvous import meet; meet()"


def test_nobody_comes() -> None:
    site = LaunchEnv(1, 2, 1, "127.0.0.1", free_port(), "a test")
    late = pytest.raises(RamifyError, match=r"rank 1 of 2 \(a test\) did not meet the others at 127.0.0.1:")
    with late, connect(site, torch.device("cpu"), 0.5):
        pass


def meet() -> None:
    """Program of the processes: takes a sum and prints how the process was started."""
    site = detect_launcher()
    with connect(site, torch.device("cpu"), float(os.environ.get("MEET_TIMEOUT", "100"))) as world:
        layout = Layout.spread(place("replicated", {"a": 1.0}, site.world), world)
        total = torch.tensor([site.rank + 1.0])
        layout.sum_over_world(total)
        sys.stdout.write(f"[{site.launcher} {site.rank} {site.local_rank} {float(total)}]\n")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "mpiexec"])
def test_processes_meet(launcher: str) -> None:
    """With the real launchers; any mpiexec will do."""
    if launcher == "mpiexec" and not shutil.which("mpiexec"):
        pytest.skip("no mpiexec here")
    run = {"torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]}
    command = run.get(launcher, ["mpiexec", "-n", "2", sys.executable])
    command += ["--no-python", sys.executable, "-c", MEET] if launcher == "torchrun" else ["-c", MEET]
    env = os.environ | {"OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"  # Open MPI counts cores
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert f"{rank} {rank} 3.0]" in done.stdout


@pytest.mark.slow
def test_meeting_again_in_the_same_store() -> None:
    """torchrun keeps its store, with the addresses of the previous ranks, when it restarts the ranks; the first of them
    finds these keys. In the last start the nodes count restarts differently, as after one of them lost a rank."""
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=60))
    base = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    base["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for order, restarts in (((0, 1), "00"), ((1, 0), "11"), ((0, 1), "12")):
        ranks = {}
        for rank in order:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": restarts[rank]}
            ranks[rank] = subprocess.Popen(
                [sys.executable, "-c", MEET], cwd=ROOT, env=os.environ | base | own, stdout=subprocess.PIPE, text=True
            )
            time.sleep(0.5 if rank == order[0] else 0.0)
        for rank, program in ranks.items():
            out, _ = program.communicate(timeout=60)
            assert (program.returncode, out) == (0, f"[torchrun {rank} {rank} 3.0]\n")


def test_the_missing_are_named() -> None:
    port = free_port()
    first = pytest.raises(RamifyError, match=r"rank 0 of 3 \(a test\) .* nothing from rank 1, 2 in 0.5 s")
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        with first, connect(LaunchEnv(0, 3, 0, "127.0.0.1", port, "a test"), torch.device("cpu"), 0.5):
            pass
    del store


DIES = """
import os, signal, torch.distributed as dist
make = dist.init_process_group
def dying(*arguments, **options):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.{name})
    make(*arguments, **options)
dist.init_process_group = dying
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_rank_that_dies_while_they_meet_ends_the_others(tmp_path: Path, name: str) -> None:
    """It is lost or frozen after the rendezvous and before the process group exists: the timeout covers this time."""
    recipe = make_recipe(tmp_path, {"a": {"format": "extxyz", "path": "a.xyz"}}).to_yaml()
    (tmp_path / "recipe.yaml").write_text(recipe)
    words = ("train", tmp_path / "recipe.yaml", "--run", tmp_path / "run", "parallel.timeout=3")
    program = Program(tmp_path, 2, *words, first=DIES.format(name=name))
    began = time.monotonic()
    program.ranks[0].join(60)
    seconds = time.monotonic() - began
    program.kill(KILL, 1)
    done = program.wait()
    assert done.statuses[0] == HUNG, done.said
    assert seconds < 40
    # whether its last heartbeat or the last progress of all is older depends on when it died
    absent = r"no rank has made progress for 3 s \(parallel\.timeout\); did not arrive: rank 1 \(last seen at "
    silent = r"rank 1 of 2, last seen at the start, has sent no heartbeat for 3 s \(parallel\.timeout\)"
    assert re.search(f"{absent}|{silent}", done.said[0]), done.said[0]
