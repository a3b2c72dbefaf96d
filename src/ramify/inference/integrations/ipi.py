"""`drive`: a branch as the driver of i-PI, which runs path-integral and classical molecular dynamics.

i-PI (https://docs.ipi-code.org, the package `ipi`) sends positions over a socket and receives energies, forces and
virials. ASE has the client of this protocol, so that i-PI itself is not needed here.
"""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.socketio import SocketClient
from numpy.typing import NDArray

from ramify.errors import RamifyError
from ramify.inference.integrations.ase import Calculator
from ramify.inference.integrations.virial import virial

RETRY = 0.1
"""s, between two attempts to connect."""

PATIENCE = 5.0
"""s, within which i-PI confirms the end of a connection."""


class _Client(SocketClient):
    """ASE's client, with virials also where a branch predicts no stress."""

    def calculate(self, atoms: Atoms, use_stress: bool) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        return energy, forces, virial(atoms, atoms.calc.results)

    def close(self) -> None:
        """Ends the connection so that i-PI notices: it waits forever where one is reset with unread requests."""
        if not self.closed:
            with suppress(OSError):  # i-PI has ended already
                connection = self.protocol.socket
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(PATIENCE)
                while connection.recv(4096):
                    pass
        super().close()


def drive(
    atoms: Atoms,
    calculator: Calculator,
    *,
    unix: str | None = None,
    host: str = "localhost",
    port: int = 31415,
    wait: float = 60.0,
    on_step: Callable[[int], None] = lambda evaluations: None,
) -> int:
    """Predicts the structures that i-PI sends, until it ends.

    Args:
        atoms: the elements, in the order of the atoms of i-PI, and the periodic axes; positions and cell come from
            i-PI.
        calculator: calculator of the branch.
        unix: name of a Unix socket, `<address>` of the input of i-PI with `mode='unix'`; None for an internet socket.
        host: host of i-PI.
        port: port of i-PI.
        wait: s, time within which i-PI must be reachable.
        on_step: called with the number of predictions so far.

    Returns:
        The number of predictions.

    Raises:
        RamifyError: the branch predicts no forces, i-PI is not reachable, or a structure cannot be predicted. The
            connection is closed; i-PI stops if its input says `exit_on_disconnect='True'`.
    """
    calculator.predictor.require_forces("run simulations")
    atoms = atoms.copy()
    atoms.calc = calculator
    calculations = 0
    where: dict[str, Any] = {"host": host, "port": port} if unix is None else {"unixsocket": unix}
    for _ in _connect(where, wait).irun(atoms):
        calculations += 1
        on_step(calculations)
    return calculations


def _connect(where: dict[str, Any], wait: float) -> _Client:
    """The connection, after i-PI has opened its socket."""
    latest = time.monotonic() + wait
    while True:
        try:
            return _Client(**where)
        except OSError as error:  # the program that opens the socket may still be starting
            if time.monotonic() > latest:
                name = f"Unix socket /tmp/ipi_{where['unixsocket']}" if "unixsocket" in where else where
                raise RamifyError(
                    f"i-PI is not reachable at {name} after {wait:g} s: {error}",
                    fix="start i-PI first, and name the address of its <ffsocket>",
                ) from None
            time.sleep(RETRY)
