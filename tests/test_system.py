"""Memory and processes of the operating system, against psutil, the clock and control groups made by hand."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ramify import system
from ramify.system import (
    available_memory,
    group_memory,
    parse_tag,
    peak_memory,
    process_age,
    process_memory,
    process_runs,
    process_start,
    process_tag,
    reset_peak_memory,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a /proc and a /sys/fs/cgroup of their own."""
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "GROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    return tmp_path


def group(folder: Path, version: int, limit: object, used: int, cached: int) -> None:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}.get(
        version, ("memory.max", "memory.current", "inactive_file")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 17\n{names[2]} {cached}\nslab 4\n")


def test_without_control_groups(groups: Path) -> None:
    assert group_memory() == math.inf
    (groups / "proc/self/cgroup").write_text("0::/\n")
    assert group_memory() == math.inf


def test_the_group_of_a_batch_job_limits(groups: Path) -> None:
    """Version 2; the tightest of a job's step, the job and all above. Files read a while ago are no burden."""
    (groups / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n")
    group(groups / "cgroup/slurm/job_7/step_0", 2, "max", 3_000, 0)
    group(groups / "cgroup/slurm/job_7", 2, 10_000, 6_000, 1_500)
    group(groups / "cgroup/slurm", 2, 90_000, 10_000, 0)
    assert group_memory() == 10_000 - 6_000 + 1_500
    assert available_memory() == 5_500
    group(groups / "cgroup/slurm", 2, 90_000, 89_000, 0)
    assert group_memory() == 1_000
    group(groups / "cgroup/slurm", 2, 90_000, 91_000, 0)
    assert group_memory() == 0


def test_a_container_sees_its_group_at_the_root(groups: Path) -> None:
    (groups / "proc/self/cgroup").write_text("0::/../../docker/abc\n")
    group(groups / "cgroup", 2, 8_000, 5_000, 0)
    assert group_memory() == 3_000


def test_groups_of_version_1(groups: Path) -> None:
    """Where no limit is the largest number of pages."""
    (groups / "proc/self/cgroup").write_text("9:name=systemd:/\n4:cpu,memory:/job\n1:cpu:/\n0::/\n")
    group(groups / "cgroup/memory", 1, 9223372036854771712, 10**9, 0)
    assert group_memory() == math.inf
    group(groups / "cgroup/memory/job", 1, 10_000, 6_000, 500)
    assert group_memory() == 4_500


def test_memory_of_the_machine_and_of_this_process() -> None:
    assert 1e8 < available_memory() <= psutil.virtual_memory().total
    before = process_memory()
    kept = np.ones(8_000_000)
    assert process_memory() - before == pytest.approx(kept.nbytes, rel=0.1)


@linux
def test_the_peak_counts_from_its_reset() -> None:
    """In a process of its own: memory that another test freed may be used again, which raises no peak."""
    code = """
import numpy as np
from ramify.system import peak_memory, process_memory, reset_peak_memory
np.ones(30_000_000)
reset_peak_memory()
before = peak_memory()
np.ones(8_000_000)
print(peak_memory() - before, process_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, kept = map(int, done.stdout.split())
    assert peak == pytest.approx(64e6, rel=0.1)
    assert kept < 32e6


def assert_own_age() -> None:
    """Compares the age of this process with psutil's start time, however long the calls take."""
    before = time.time()
    age = process_age()
    began = psutil.Process().create_time()
    assert before - began - 1 <= age <= time.time() - began + 1


def test_age_of_a_process() -> None:
    """Against the clock, imports included."""
    code = "import time; from ramify.system import process_age; print(process_age(), time.time())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    age, at = map(float, done.stdout.split())
    assert at - before - age > -0.02  # two ticks of the system's clock
    assert age > 0
    assert_own_age()


def test_when_a_process_began() -> None:
    began = process_start(os.getpid())
    assert began is not None
    assert process_runs(os.getpid(), began)
    assert process_runs(os.getpid(), None)  # began at a time that nobody wrote down
    assert not process_runs(os.getpid(), began - 100)
    assert not process_runs(None, None)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None  # its parent does not know yet
    child.wait()
    assert process_start(child.pid) is None
    assert not process_runs(child.pid, None)


def test_processes_where_there_is_no_proc(groups: Path) -> None:
    """As on macOS."""
    assert process_start(os.getpid()) == pytest.approx(1e6 * psutil.Process().create_time(), abs=1)
    assert_own_age()
    assert process_runs(os.getpid(), process_start(os.getpid()))
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) is None
    child.wait()
    assert process_start(child.pid) is None
    assert peak_memory() == 0
    reset_peak_memory()


def test_tags_in_file_names() -> None:
    me = (os.getpid(), process_start(os.getpid()))
    assert process_tag() == f"{me[0]}-{me[1]}"
    assert parse_tag(process_tag()) == me
    assert parse_tag(f"{me[0]}") == me  # as earlier versions wrote it
