"""Another program that connects to the port of a run is not counted as a rank and cannot run code on one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from ramify.errors import RamifyError
from ramify.parallel.startup.launch import LaunchEnv
from ramify.parallel.startup.secret import find_secret
from ramify.parallel.world import World, encode
from tests.processes.worlds import free_port, run_world

LEAD = """
import os, sys
import torch
from ramify.errors import RamifyError
from ramify.parallel.startup.launch import LaunchEnv
from ramify.parallel.startup.rendezvous import connect
rank, port, timeout = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
try:
    with connect(LaunchEnv(rank, 2, rank, "127.0.0.1", port, "a test", True), torch.device("cpu"), timeout) as world:
        print(world.gather(rank))
except RamifyError as error:
    sys.exit(str(error))
"""

STRANGER = """
import json, os, sys
from datetime import timedelta
import torch.distributed as dist
port, marker = int(sys.argv[1]), sys.argv[2]
class Pickled:
    def __reduce__(self):
        return os.system, (f"touch {marker}",)
store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
store.set("ramify/word/1", "a word")
start, signature = json.loads(store.get("ramify/answer/a word"))
about = {"node": "elsewhere", "address": ""}
for shown in ("", "nonsense", json.dumps([about, "0" * 64]), json.dumps([about, signature]), json.dumps([about, 7])):
    store.set(f"ramify/{start}/met/1", shown)
print("shown", flush=True)
dist.init_process_group("gloo", store=dist.PrefixStore(f"ramify/{start}", store), rank=1, world_size=2)
dist.all_gather_object([None, None], Pickled())
"""


def started(code: str, *words: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        text=True,
    )


def listening(port: int) -> set[str]:
    """The addresses at which anybody on this machine listens at a port, as the kernel writes them (proc(5))."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A" and local.endswith(f":{port:04X}"):
                found.add(local.split(":")[0])
    return found


@pytest.mark.slow
def test_a_stranger_is_not_counted_and_runs_nothing(tmp_path: Path) -> None:
    """It has everything but the secret, connects first, and sends a pickle that would run a command."""
    port, marker = free_port(), tmp_path / "marker"
    lead = started(LEAD, 0, port, 6.0)
    stranger = started(STRANGER, port, marker)
    try:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "shown\n"
        assert listening(port) == {"0100007F"}  # 127.0.0.1, and nowhere else
        out, said = lead.communicate(timeout=60)
    finally:
        lead.kill()
        stranger.kill()
        stranger.communicate()
    assert (lead.returncode, out) == (1, "")
    assert "rank 1: the process that connected does not know the secret of this run" in said
    assert not marker.exists()


@pytest.mark.slow
def test_a_stranger_does_not_keep_ranks_apart(tmp_path: Path) -> None:
    """It has overwritten the message of a rank."""
    port = free_port()
    lead, stranger = started(LEAD, 0, port, 60.0), started(STRANGER, port, tmp_path / "marker")
    follower = None
    try:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "shown\n"
        follower = started(LEAD, 1, port, 60.0)
        for rank in (lead, follower):
            out, said = rank.communicate(timeout=90)
            assert (rank.returncode, out) == (0, "[0, 1]\n"), said
    finally:
        for process in (lead, stranger, *([follower] if follower else [])):
            process.kill()
            process.communicate()
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
def test_ranks_with_different_secrets_do_not_meet() -> None:
    port = free_port()
    lead = started(LEAD, 0, port, 5.0, RAMIFY_SECRET="one")
    follower = started(LEAD, 1, port, 5.0, RAMIFY_SECRET="two")
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 1
    assert "answers as rank 0" in said
    assert "does not know the secret of this run (RAMIFY_SECRET)" in said
    _, said = lead.communicate(timeout=60)
    assert lead.returncode == 1
    assert "nothing from rank 1 in 5 s" in said


class Pickled:
    """Leaves a file with the number of the process that unpickles it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.folder}/$PPID",)


def receive(rank: int, folder: Path) -> str:
    """Rank 1 is not this program: it sends a pickle where plain data are exchanged."""
    (folder / f"rank-{rank}").write_text(str(os.getpid()))
    if rank:
        try:
            dist.all_gather_object([None, None], Pickled(folder))
        except Exception:
            time.sleep(1)
        return ""
    with pytest.raises(RamifyError) as raised:
        World(rank=0, size=2).gather({"a": 1})
    return str(raised.value)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    said, _ = run_world(2, receive, tmp_path)
    assert "rank 1 of 2 sent " in said
    assert "not JSON" in said
    assert not (tmp_path / (tmp_path / "rank-0").read_text()).exists()


def test_plain_data_travel_unchanged() -> None:
    world = World()
    value = {"a": [1, 0.1 + 0.2, 1e-320, -0.0, float("inf")], "b": {"ü": None, "c": True}}
    assert world.gather(value) == [value]
    assert str(world.gather(float("nan"))[0]) == "nan"
    assert world.gather((1, "x")) == [[1, "x"]]
    for other in ({1: "a"}, {"a": {2}}, object(), b"bytes"):
        with pytest.raises(TypeError, match="ranks exchange plain data"):
            encode(other)


def site(launcher: str = "srun", *, one_node: bool = False) -> LaunchEnv:
    return LaunchEnv(1, 2, 1, "node1", 1234, launcher, one_node)


def test_where_the_secret_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    stated = find_secret(site(), job | {"RAMIFY_SECRET": "x"})
    assert (stated.source, stated.is_private) == ("RAMIFY_SECRET", True)
    assert stated.has_signed(find_secret(site("torchrun"), {"RAMIFY_SECRET": "x"}).sign("a", 1), "a", 1)
    elastic = find_secret(site("torchrun"), {"TORCHELASTIC_RUN_ID": "abc"})
    assert (elastic.source, elastic.is_private) == ("TORCHELASTIC_RUN_ID", True)
    assert not find_secret(site("torchrun"), {"TORCHELASTIC_RUN_ID": "none"}).is_private
    weak = find_secret(site(), job)
    assert not weak.is_private
    assert not weak.has_signed(find_secret(site(), job | {"SLURM_STEP_ID": "1"}).sign("a"), "a")  # another run
    assert not list(tmp_path.iterdir())
    own = find_secret(site(one_node=True), job)
    kept = tmp_path / f"ramify-{os.getuid()}" / "secret"
    assert (own.source, own.is_private) == (str(kept), True)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert own.has_signed(find_secret(site(one_node=True), {}).sign("a"), "a")
    assert [path.name for path in kept.parent.iterdir()] == ["secret"]
    kept.parent.chmod(0o755)
    with pytest.raises(RamifyError, match=r"ramify-\d+ must be a folder .* no other user can enter"):
        find_secret(site(one_node=True), {})


def test_signatures() -> None:
    secret = find_secret(site(), {"RAMIFY_SECRET": "x"})
    signature = secret.sign("met", "start", 1)
    assert len(json.dumps(signature)) == 66
    for other in (("met", "start", 2), ("met", "start"), ("go", "start", 1)):
        assert not secret.has_signed(signature, *other)
    for wrong in ("", "0" * 64, None, 7, signature[:-1]):
        assert not secret.has_signed(wrong, "met", "start", 1)
