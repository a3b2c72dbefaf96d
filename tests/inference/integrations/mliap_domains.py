"""The data that LAMMPS gives to the object of `pair_style mliap unified`, for every domain of a simulation.

LAMMPS with ML-IAP's coupling to Python is in no wheel. `Domain` stands for its class `MLIAPDataPy`
(src/ML-IAP/mliap_unified_couple.pyx) and `KokkosDomain` for that of the package KOKKOS
(src/KOKKOS/mliap_unified_couple_kokkos.pyx), which also exchanges features. Each domain runs in a thread of its own.
"""

import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from torch import Tensor

from ramify.inference.export.exported import write_export
from ramify.inference.integrations.ase import Calculator
from ramify.inference.integrations.mliap import UnifiedModel
from ramify.inference.model import Model, load


class Domain:
    """The data of one domain: its own atoms first, then ghost atoms.

    Attributes:
        tag: (ntotal,) index of each atom in the whole structure.
        virial: (3, 3) eV, as LAMMPS sums it.
    """

    def __init__(self, atoms: Atoms, own: NDArray[np.int64], radius: float, elements: list[str]) -> None:
        first, second, shift, vector = neighbor_list("ijSD", atoms, radius)
        number = {(int(i), 0, 0, 0): k for k, i in enumerate(own)}
        mine = np.isin(first, own)
        for j, s in zip(second[mine].tolist(), shift[mine].tolist(), strict=True):
            number.setdefault((j, *s), len(number))
        rng = np.random.default_rng(0)
        order = rng.permutation(np.flatnonzero(mine))  # LAMMPS gives pairs in any order
        self.tag = np.array([key[0] for key in number], np.int64)
        self.nlocal = self.nlistatoms = len(own)
        self.ntotal, self.npairs = len(number), len(order)
        self.iatoms = np.arange(self.nlocal, dtype=np.int32)
        self.elems = np.array([elements.index(atoms.symbols[i]) for i in self.tag], np.int32)
        self.pair_i = np.array([number[int(first[p]), 0, 0, 0] for p in order], np.int32)
        self.pair_j = np.array([number[(int(second[p]), *shift[p].tolist())] for p in order], np.int32)
        self.rij = vector[order]
        self.f, self.virial = np.zeros((self.ntotal, 3)), np.zeros((3, 3))
        self.written, self.energy = np.zeros(self.nlocal), np.nan

    eatoms = property(None, lambda self, values: setattr(self, "written", np.array(values)))

    def update_pair_forces(self, fij: NDArray[np.float64]) -> None:
        assert fij.shape == (self.npairs, 3)
        assert fij.dtype == np.float64
        np.add.at(self.f, self.pair_i, fij)
        np.add.at(self.f, self.pair_j, -fij)
        self.virial -= self.rij.T @ fij


class KokkosDomain(Domain):
    """As `Domain`; energies of atoms are written into an array, and features are exchanged."""

    world: "World"
    eatoms = property(lambda self: self.written)

    def forward_exchange(self, copy_from: Tensor, copy_to: Tensor, vec_len: int) -> None:
        self._check(copy_from, copy_to, vec_len)
        whole = self.world.gathered(self, copy_from[: self.nlocal])
        copy_to[:] = copy_from
        copy_to[self.nlocal :] = whole[self.tag[self.nlocal :]]

    def reverse_exchange(self, copy_from: Tensor, copy_to: Tensor, vec_len: int) -> None:
        self._check(copy_from, copy_to, vec_len)
        copy_to[:] = self.world.gathered(self, copy_from)[self.tag]
        copy_to[self.nlocal :] = 0

    def _check(self, copy_from: Tensor, copy_to: Tensor, vec_len: int) -> None:
        assert copy_from.shape == copy_to.shape == (self.ntotal, vec_len)
        assert copy_from.is_contiguous()


class World:
    """The domains of a structure."""

    def __init__(self, atoms: int) -> None:
        self.domains: list[KokkosDomain] = []
        self._atoms = atoms
        self._sent: dict[int, Tensor] = {}
        self._barrier = threading.Barrier(1)

    def gathered(self, domain: KokkosDomain, rows: Tensor) -> Tensor:
        """Sum over all domains of `rows`, the features of their first atoms, by atom of the structure."""
        self._sent[id(domain)] = rows
        self._barrier.wait(60)
        whole = rows.new_zeros(self._atoms, rows.shape[1])
        for each in self.domains:
            sent = self._sent[id(each)]
            whole.index_add_(0, torch.from_numpy(each.tag[: len(sent)]), sent.detach())
        self._barrier.wait(60)
        return whole

    def run(self, model: UnifiedModel) -> None:
        """One step of all domains at the same time."""
        self._barrier = threading.Barrier(len(self.domains))
        errors: list[BaseException] = []

        def step(domain: KokkosDomain) -> None:
            try:
                pickle.loads(pickle.dumps(model)).compute_forces(domain)
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=step, args=(domain,)) for domain in self.domains]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def simulated(model: UnifiedModel, atoms: Atoms, domains: int) -> tuple[float, Any, Any, Any]:
    """Energy, energies of atoms, forces and virial of a structure in slabs along its first lattice vector."""
    world = World(len(atoms))
    slab = np.floor(atoms.get_scaled_positions()[:, 0] * domains).astype(int) % domains
    for index in range(domains):
        domain = KokkosDomain(atoms, np.flatnonzero(slab == index), 2 * model.rcutfac, model.element_types)
        domain.world = world
        world.domains.append(domain)
    world.run(model)
    forces, energies = np.zeros((len(atoms), 3)), np.zeros(len(atoms))
    for domain in world.domains:
        np.add.at(forces, domain.tag, domain.f)
        energies[domain.tag[: domain.nlocal]] = domain.written
    return (
        sum(domain.energy for domain in world.domains),
        energies,
        forces,
        sum(domain.virial for domain in world.domains),
    )


def assert_equal_to_ase(model: UnifiedModel, source: Model, branch: str, atoms: Atoms, domains: int) -> None:
    atoms = atoms.copy()
    atoms.calc = Calculator(source, branch)
    energy, energies, forces, virial = simulated(model, atoms, domains)
    assert np.abs(atoms.get_forces()).max() > 1e-4
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert energies.sum() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-7)
    np.testing.assert_allclose(virial, -atoms.get_stress(voigt=False) * atoms.get_volume(), atol=1e-6)


def rocksalt() -> Atoms:
    """MgO in a skewed cell that is shorter than two cutoffs; its middle third is empty along the first axis."""
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.1, seed=3)
    atoms.set_cell(atoms.cell.array @ [[1, 0, 0], [0.07, 1, 0], [0.05, -0.02, 1]], scale_atoms=True)
    atoms.set_cell(np.diag([2.0, 1, 1]) @ atoms.cell.array)
    return atoms


def stiffened(model: Model, folder: Path) -> Model:
    """The model in float64 with forces of about 1 eV/Å without repulsion, which are small after few steps."""
    scale = {name: 1e4 * t if name.endswith("energy_scale") else t for name, t in model.saved.weights.items()}
    return load(write_export(replace(model.saved, weights=scale), folder), precision="fp64")
