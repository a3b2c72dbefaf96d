"""`TorchSimModel`: a branch as a model of torch-sim, which simulates many structures at once.

torch-sim (https://github.com/TorchSim/torch-sim, the package `torch-sim-atomistic`) is an optional dependency.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ramify.errors import RamifyError
from ramify.inference.model import Model, load
from ramify.inference.screen import Refused, WarnOnce, doubts, screen, screen_distances, screen_predictions
from ramify.inference.skin import SkinNeighbors
from ramify.structures import STATES, Structures

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ImportError as error:
    raise RamifyError(
        f"torch-sim cannot be imported: {error}", fix="install it: pip install torch-sim-atomistic"
    ) from None

FIELDS = ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
"""The fields of a state that are used."""


class TorchSimModel(ModelInterface):
    """Energies, forces and stresses of torch-sim states by one branch of a model.

    Integrators and optimizers work in float64, so that total energies keep their precision; the network computes in
    the precision it was loaded with. Neighbours are found on the CPU and reused while the atoms move little.

    Args:
        model: a `Model`, or the path of one (see `ramify.load`).
        branch: name of the branch; required if there are several.
        dataset: dataset whose energy scale is used; required if the branch was trained on several.
        charge, spin: charge in e and multiplicity of structures whose state has none (`state.charge` and `state.spin`,
            numbers (S,)), for models that take them as conditions.
        skin: Å, sum of the displacements of two atoms that triggers a new neighbour search.

    Raises:
        RamifyError: there are several branches (or datasets) and none is named, a name is unknown, or the branch
            predicts no forces.
    """

    def __init__(
        self,
        model: Model | str | Path,
        branch: str | None = None,
        *,
        dataset: str | None = None,
        charge: int | None = None,
        spin: int | None = None,
        skin: float = 0.4,
    ) -> None:
        super().__init__()
        loaded = model if isinstance(model, Model) else load(model)
        self.predictor = loaded.predictor(branch, dataset, charge=charge, spin=spin)
        self.predictor.require_forces("run simulations")
        encoder = loaded.options.encoder
        self.neighbors = SkinNeighbors(encoder.cutoff, encoder.max_neighbors, skin, loaded.device.type)
        self._warn = WarnOnce()
        self._device, self._dtype = loaded.device, torch.float64
        self._compute_forces, self._compute_stress = True, self.predictor.branch.stress
        self._memory_scales_with = "n_atoms_x_density" if encoder.max_neighbors is None else "n_atoms"

    def forward(self, state: SimState | dict[str, Any], **_: Any) -> dict[str, Tensor]:
        """The predictions for all structures of a state.

        Args:
            state: S structures with N atoms, or the fields of the state by name. In torch-sim, lattice vectors are the
                columns of a cell.

        Returns:
            `energy` (S,) eV; `forces` (N, 3) eV/Å; `stress` (S, 3, 3) eV/Å³, tension positive, NaN without periodic
            axes; only with conservative forces; `energy_std` (S,) eV, only with error bars.

        Raises:
            RamifyError: a structure that cannot be predicted.

        Warns:
            RamifyWarning: atoms closer than any in the training data, or a charge or spin, taken as a condition, that
                these do not contain; once per set of atoms.
        """
        fields = state if isinstance(state, dict) else {name: getattr(state, name) for name in FIELDS}
        stated = {name: fields.get(name, getattr(state, name, None)) for name in STATES}
        structures = self.predictor.stated(_structures(fields, stated))
        _refuse(screen(structures, self.predictor.branch, self.predictor.dataset))
        edges, closest = self.neighbors.find(structures)
        _refuse(screen_distances(closest))
        doubted = doubts(structures, closest, self.predictor.branch, self.predictor.dataset)
        self._warn(structures, doubted, stacklevel=2)
        answer = self.predictor.predict_edges(structures, edges)
        _refuse(screen_predictions(answer.energy, answer.forces, structures.n_atoms))
        found = {"energy": answer.energy, "forces": answer.forces}
        found |= {"stress": answer.stress} if self._compute_stress else {}
        found |= {"energy_std": answer.energy_std} if answer.energy_std is not None else {}
        like = fields["positions"]
        return {name: torch.from_numpy(values).to(like.device, like.dtype) for name, values in found.items()}


def _refuse(refused: Refused) -> None:
    if refused:
        index, (reason, detail) = next(iter(refused.items()))
        raise RamifyError(f"system {index}: {reason}: {detail}", fix="correct it, or the program that moved it")


def _structures(fields: dict[str, Any], stated: Mapping[str, Any]) -> Structures:
    """The state as `Structures`."""
    numbers = fields["atomic_numbers"].cpu().numpy()
    of_atom = fields.get("system_idx")
    of_atom = np.zeros(len(numbers), np.int64) if of_atom is None else of_atom.cpu().numpy()
    cell = fields["cell"].detach().cpu().double().numpy().reshape(-1, 3, 3).transpose(0, 2, 1)
    pbc = np.broadcast_to(np.asarray(torch.as_tensor(fields["pbc"]).cpu()), (len(cell), 3))
    return Structures.make(
        n_atoms=np.bincount(of_atom, minlength=len(cell)),
        numbers=numbers,
        positions=fields["positions"].detach().cpu().double().numpy(),
        cell=cell,
        pbc=pbc,
        charge=_numbers(stated["charge"], len(cell)),
        spin=_numbers(stated["spin"], len(cell)),
    )


def _numbers(values: Any, structures: int) -> Any:
    """(S,) numbers of a state; None where it has none."""
    return None if values is None else torch.as_tensor(values).cpu().reshape(structures).numpy()
