"""Addresses and network interfaces of this host, for connections to other ranks and for listening."""

import fcntl
import os
import socket
import struct
from pathlib import Path

GLOO = "GLOO_SOCKET_IFNAME"
"""Variable that names the interface Gloo listens on. By default, Gloo uses the interface of the host name, which many
hosts resolve to loopback."""

SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of an interface, see netdevice(7)."""


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """The addresses of a host, IPv4 first; empty where the name does not resolve."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    pairs = [(family, (str(address[0]), port)) for family, _, _, _, address in found]
    return sorted(pairs, key=lambda pair: pair[0] != socket.AF_INET)


def is_loopback(host: str) -> bool:
    """Whether a name or address resolves to loopback addresses only."""
    found = resolve(host, 0)
    return bool(found) and all(address[0].startswith("127.") or address[0] == "::1" for _, address in found)


def listen(host: str, port: int, *, one_node: bool) -> socket.socket:
    """A socket that listens on the address of `host` alone.

    It listens on all interfaces where other nodes could not connect otherwise: if the address does not belong to this
    host (address translation), or if its name resolves to loopback only.

    Raises:
        OSError: the port is taken.
    """
    only_here = is_loopback(host) and not one_node
    for family, address in () if only_here else resolve(host, port):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            listener.close()
            if error.errno not in _NOT_OURS:
                raise
        else:
            listener.listen(socket.SOMAXCONN)
            return listener
    return socket.create_server(("", port), backlog=socket.SOMAXCONN)


_NOT_OURS = (99, 49)
"""EADDRNOTAVAIL of Linux and of macOS."""


def address_towards(host: str) -> str:
    """The local address of connections from this host to `host`; empty where there is no route."""
    for family, address in resolve(host, 9):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(address)  # a datagram socket: sends nothing
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return ""


def interface_of(address: str) -> str:
    """The name of the interface with an address; empty where there is none."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address.split("%")[0]).hex()
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines() if _HAS_INET6 else []
        return next((line.split()[-1] for line in lines if line.startswith(packed)), "")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


_HAS_INET6 = os.path.exists("/proc/net/if_inet6")


def node() -> str:
    """A unique identifier of this node and its network namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/net')}"
    except OSError:
        return socket.gethostname()
