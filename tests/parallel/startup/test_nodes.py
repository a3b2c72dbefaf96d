"""Two hosts as network namespaces: ranks connect over their network, also if host names resolve to loopback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramify.parallel.startup.interfaces import address_towards, interface_of, is_loopback, listen
from tests.parallel.startup.test_rendezvous import MEET, ROOT

NAMES, ADDRESSES = ("ramify-a", "ramify-b"), ("10.213.77.1", "10.213.77.2")
HOSTS = f"127.0.0.1 localhost\n127.0.1.1 {os.uname().nodename} other-name\n"
"""As Debian writes /etc/hosts: the name of the host leads to the host alone."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    """Two hosts with a cable between them."""
    if os.getuid() != 0 or not shutil.which("ip"):
        pytest.skip("making network namespaces takes root and iproute2")
    configured = [Path("/etc/netns") / name for name in NAMES]
    try:
        for name, folder in zip(NAMES, configured, strict=True):
            ip("netns", "add", name)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(HOSTS)
        ip("link", "add", "cable", "netns", NAMES[0], "type", "veth", "peer", "name", "cable", "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
    except (OSError, subprocess.CalledProcessError) as error:
        _remove(configured)
        pytest.skip(f"no network namespaces can be made here: {error}")
    yield
    _remove(configured)


def _remove(configured: list[Path]) -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)
    for folder in configured:
        shutil.rmtree(folder, ignore_errors=True)


def meet(port: int, first: str, second: str, *, timeout: float = 60.0, **env: str) -> list[tuple[int, str]]:
    """Exit status and output of a rank on each host, given the address of rank 0 as `first` and as `second`."""
    base = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    base |= {"OMP_NUM_THREADS": "1", "RAMIFY_SECRET": "of this test", "MEET_TIMEOUT": str(timeout)}
    ranks = []
    for rank, (name, address) in enumerate(zip(NAMES, (first, second), strict=True)):
        command = ["ip", "netns", "exec", name, sys.executable, "-c", MEET]
        own = os.environ | base | env | {"RANK": str(rank), "MASTER_ADDR": address}
        ranks.append(
            subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        return [(rank.wait(90), rank.communicate()[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("first", [ADDRESSES[0], "other-name"])
def test_hosts_whose_names_are_loopback_meet(first: str) -> None:
    """Also where the host name of rank 0 resolves to an address that only rank 0 can reach."""
    for rank, (status, said) in enumerate(meet(21717, first, ADDRESSES[0])):
        assert status == 0, said
        assert said.endswith(f"[torchrun {rank} 0 3.0]\n")  # PyTorch warns where an address has no name


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
def test_without_a_secret_that_is_said() -> None:
    (status, said), (_, other) = meet(21718, ADDRESSES[0], ADDRESSES[0], RAMIFY_SECRET="")
    assert status == 0
    assert "note: the ranks are on 2 nodes and share no secret" in said
    assert "note" not in other


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
def test_an_unreachable_interface_is_named() -> None:
    for rank, (status, said) in enumerate(meet(21719, ADDRESSES[0], ADDRESSES[0], GLOO_SOCKET_IFNAME="lo")):
        assert status == 1
        assert f"rank {rank} of 2: GLOO_SOCKET_IFNAME=lo leads to the loopback interface" in said
        assert "2 nodes" in said
        assert "NCCL_SOCKET_IFNAME" in said


@pytest.mark.slow
@pytest.mark.usefixtures("hosts")
def test_a_name_that_leads_to_oneself_is_named() -> None:
    """Rank 1 looks for rank 0 on its own host."""
    (_, lead), (status, said) = meet(21720, ADDRESSES[0], "other-name", timeout=4.0)
    assert status == 1
    assert "other-name resolves to 127.0.1.1 on this host, a loopback address that no other node reaches" in said
    assert "nothing from rank 1 in 4 s" in lead


def test_addresses_of_this_host() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("no-such-host.invalid") == ""
    loopback = interface_of("127.0.0.1")
    assert loopback in os.listdir("/sys/class/net")
    assert interface_of("192.0.2.1") == ""  # reserved for documentation (RFC 5737): of no machine
    assert is_loopback("localhost")
    assert is_loopback("127.0.1.1")
    assert not is_loopback("192.0.2.1")
    for host, one_node, expected in (("127.0.0.1", True, "127.0.0.1"), ("192.0.2.1", False, "0.0.0.0")):
        with listen(host, 0, one_node=one_node) as listener:
            assert listener.getsockname()[0] == expected
