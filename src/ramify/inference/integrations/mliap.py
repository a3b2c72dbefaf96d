"""A branch as the object that LAMMPS's `pair_style mliap unified` loads, for GPUs and several processes.

LAMMPS (https://docs.lammps.org/pair_mliap.html) gives each process the atoms of its domain and copies of those within
the search radius around it, "ghost" atoms, with all pairs of its own atoms. A process computes the features of its own
atoms. Before every further round of message passing, LAMMPS replaces the features of ghost atoms by those that their
own processes have computed (`forward_exchange`), and in the derivative, it adds the slopes of ghost atoms to those of
their own processes (`reverse_exchange`). The slopes of the energy with respect to pair vectors, hence forces and
virial, are thus exact for any number of domains, with ghost atoms within one search radius only. These two functions
exist in LAMMPS with the package KOKKOS; a model with one round does not need them.

The file is a pickle of the class below, as LAMMPS requires; its content is an export (`ramify.inference.export`).
"""

import os
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ramify.batches.conditions import dataset_number
from ramify.elements import NUMBERS
from ramify.errors import RamifyError, RamifyWarning
from ramify.files import write_whole
from ramify.inference.export.exported import write_export
from ramify.inference.integrations.adaptive_cutoff import edges_among_pairs
from ramify.inference.model import Model, load
from ramify.inference.predictor import Predictor
from ramify.inference.screen import CLOSE, COINCIDENT, NON_FINITE_PREDICTION, ONE_SPOT, TOLERANCE
from ramify.model.graph import edge_geometry
from ramify.neighbors.edges import ROUNDING, SOFTNESS, search_radius
from ramify.parallel.startup.launch import LAUNCHERS
from ramify.structures import STATES
from ramify.untrusted import check_version

VERSION = 1
"""Of the pickled state."""


class UnifiedModel:
    """Has the interface of `lammps.mliap.mliap_unified_abc.MLIAPUnified`. Made by `write_mliap`.

    Attributes:
        interface: set by LAMMPS.
        element_types: symbols of the elements that `pair_coeff` can name.
        ndescriptors, nparams: sizes that LAMMPS requires; not used.
        rcutfac: Å, half of the search radius.
    """

    def __init__(self, files: Mapping[str, bytes], branch: str, dataset: str, precision: str) -> None:
        self._content = {"files": dict(files), "branch": branch, "dataset": dataset, "precision": precision}
        with TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                (Path(folder) / name).write_bytes(content)
            predictor = load(folder, precision=precision).predictor(branch, dataset)
        encoder = predictor.options.encoder
        self.interface: Any = None
        self.element_types = list(predictor.dataset.elements)
        self.ndescriptors = self.nparams = 1
        self.rcutfac = 0.5 * search_radius(encoder.cutoff, encoder.max_neighbors)
        self._predictor, self._warned = predictor, False
        self._numbers = torch.tensor([NUMBERS[symbol] for symbol in self.element_types])
        self._references = torch.from_numpy(predictor.references)

    def __getstate__(self) -> dict[str, Any]:
        return {"version": VERSION, **self._content}

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_version(state, VERSION, "the model")
        state.pop("version")
        self.__init__(**state)  # type: ignore[misc]

    def compute_gradients(self, data: Any) -> None:
        """Required by LAMMPS; does nothing."""

    def compute_descriptors(self, data: Any) -> None:
        """Required by LAMMPS; does nothing."""

    def compute_forces(self, data: Any) -> None:
        """Sets energies and adds forces and virial of the atoms of one domain; called by LAMMPS at every step.

        Args:
            data: an `MLIAPDataPy` of LAMMPS.

        Raises:
            RamifyError: the prediction failed, or LAMMPS cannot exchange features. With several processes, this one
                ends instead, so that the others do not wait for it.

        Warns:
            RamifyWarning: atoms closer than any in the training data; once.
        """
        try:
            self._compute(data)
        except Exception as error:
            if all(os.environ.get(launcher.world, "1") == "1" for launcher in LAUNCHERS):
                raise
            print(f"ramify: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # the launcher then ends the other processes

    def _compute(self, data: Any) -> None:
        if self._predictor.network.encoder.rounds > 1 and not hasattr(data, "forward_exchange"):
            raise RamifyError(
                f"the model passes messages {self._predictor.network.encoder.rounds} times, and this LAMMPS does not "
                "exchange features of atoms",
                fix="use LAMMPS with the package KOKKOS (lmp -k on -sf kk), or ramify.lammps.attach on one process",
            )
        pair = _tensor(data, "rij", (data.npairs, 3), torch.float64)
        ends = [_tensor(data, name, (data.npairs,), torch.int64) for name in ("pair_i", "pair_j")]
        kinds = _tensor(data, "elems", (data.ntotal,), torch.int64)
        energy, slope = self._slopes(pair, ends[0], ends[1], self._number_of(kinds), data)
        own = _tensor(data, "iatoms", (data.nlistatoms,), torch.int64)
        energy = energy.index_select(0, own)
        data.energy = float(energy.sum())
        _set_atom_energies(data, energy)
        if data.npairs:
            data.update_pair_forces(slope.contiguous() if slope.is_cuda else slope.contiguous().numpy())

    def _number_of(self, kinds: Tensor) -> Tensor:
        """(N,) atomic numbers. Atoms of other pair styles (`NULL`) have no pairs, and any number."""
        return self._numbers.to(kinds.device)[kinds.clamp(min=0)]

    def _slopes(
        self, pair: Tensor, receiver: Tensor, sender: Tensor, numbers: Tensor, data: Any
    ) -> tuple[Tensor, Tensor]:
        """Energies (N,), eV, and slopes of their sum over own atoms by pair vector (P, 3), eV/Å; both in float64."""
        predictor, encoder = self._predictor, self._predictor.options.encoder
        network = predictor.network.to(numbers.device)
        branch = network.branch(predictor.branch.name)
        with torch.inference_mode(False), torch.enable_grad():
            vector = pair.to(branch.energy_scale.dtype).requires_grad_()
            distance = torch.linalg.vector_norm(vector, dim=1)
            self._check_distances(distance.detach())
            limit = encoder.max_neighbors or 0
            inside, atom_cutoff, slots = edges_among_pairs(
                distance, receiver, len(numbers), encoder.cutoff, limit, SOFTNESS, ROUNDING
            )
            ends = receiver.index_select(0, inside), sender.index_select(0, inside)
            edges = vector.index_select(0, inside), distance.index_select(0, inside)
            graph = edge_geometry(numbers, *ends, *edges, atom_cutoff, slots, self._conditions(numbers, vector.dtype))
            graph = replace(graph, exchange=_exchange_by(data) if hasattr(data, "forward_exchange") else None)
            energy = branch.atom_energies(network.encoder(graph)[0])
            if network.repulsion is not None:
                energy = energy + network.repulsion(graph)
            (slope,) = torch.autograd.grad(energy[: data.nlocal].sum(), vector)
        if not (torch.isfinite(energy[: data.nlocal]).all() and torch.isfinite(slope).all()):
            raise RamifyError(NON_FINITE_PREDICTION, fix="correct the structure, or the settings that moved its atoms")
        references = self._references.to(numbers.device)[numbers]
        return energy.detach().to(torch.float64) + references, slope.to(torch.float64)

    def _conditions(self, numbers: Tensor, dtype: torch.dtype) -> Tensor | None:
        """(N, 1) the dataset, the only condition of exported models; None without."""
        options = self._predictor.options
        if not options.conditions:
            return None
        value = float(dataset_number(options, self._predictor.dataset.name))
        return torch.full((len(numbers), 1), value, dtype=dtype, device=numbers.device)

    def _check_distances(self, distance: Tensor) -> None:
        if not len(distance):
            return
        closest, known = float(distance.min()), self._predictor.dataset.min_distance
        if not closest >= ONE_SPOT:  # also if it is not a number
            raise RamifyError(
                f"{COINCIDENT}: {closest:.3f} Å", fix="correct the structure, or the settings that moved its atoms"
            )
        if known is not None and closest < known - TOLERANCE and not self._warned:
            self._warned = True
            warnings.warn(f"extrapolation: {CLOSE}: {closest:.3f} Å against {known:.3f} Å", RamifyWarning, stacklevel=2)


class _Exchange(torch.autograd.Function):
    """Features (N, K) of all atoms, those of ghost atoms from the processes that own them."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, data: Any) -> Tensor:
        ctx.data = data
        return _communicated(data.forward_exchange, features)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return _communicated(ctx.data.reverse_exchange, slopes[0]), None


def _communicated(exchange: Callable[[Tensor, Tensor, int], None], sent: Tensor) -> Tensor:
    sent = sent.contiguous()
    received = torch.empty_like(sent)
    if sent.is_cuda:
        torch.cuda.synchronize(sent.device)  # LAMMPS reads it in a stream of its own
    exchange(sent, received, sent.shape[1])
    return received


def _exchange_by(data: Any) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """`Graph.exchange` by LAMMPS: one message for all features. Processes without atoms take part."""

    def exchange(features: Sequence[Tensor]) -> list[Tensor]:
        sizes = [each.shape[1:].numel() for each in features]
        flat = torch.cat([each.reshape(len(each), size) for each, size in zip(features, sizes, strict=True)], dim=1)
        received: Tensor = _Exchange.apply(flat, data)
        return [one.reshape(each.shape) for one, each in zip(received.split(sizes, dim=1), features, strict=True)]

    return exchange


def _tensor(data: Any, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An array of LAMMPS, on its device; arrays without elements cannot be read there."""
    return torch.as_tensor(getattr(data, name)).to(dtype) if shape[0] else torch.empty(shape, dtype=dtype)


def _set_atom_energies(data: Any, energy: Tensor) -> None:
    """Writes the energies (n,) of the listed atoms: into an array with KOKKOS, else by assignment."""
    if not len(energy):
        return
    target = getattr(data, "eatoms", None)
    if target is None:
        data.eatoms = energy.numpy()
    else:
        torch.as_tensor(target)[: len(energy)] = energy


def write_mliap(model: Model, branch: str | None, target: Path, dataset: str | None = None) -> Path:
    """Writes a branch for `pair_style mliap unified`.

    Args:
        model: the model; the file computes in its precision.
        branch: name of the branch; may be None if there is only one.
        target: a file, usually named `NAME.pkl`; must not exist.
        dataset: dataset whose energy scale is used; required if the branch was trained on several.

    Raises:
        RamifyError: `target` exists or has a suffix that LAMMPS reads otherwise, or the branch cannot be used: a
            committee, direct forces or none, charge or spin as condition, or an encoder that does not take domains.
    """
    predictor = model.predictor(branch, dataset)
    _refuse(predictor)
    if target.suffix in (".pt", ".pth"):
        raise RamifyError(
            f"{target}: LAMMPS reads files with the suffix {target.suffix} in another format",
            fix=f"name it {target.with_suffix('.pkl')}",
        )
    if target.exists():
        raise RamifyError(f"{target} exists already; an export is never overwritten", fix="choose another file")
    with TemporaryDirectory() as folder:
        saved = replace(model.saved, router=None, uncertainty=None)
        export = write_export(saved, Path(folder) / "model", [predictor.branch.name])
        files = {str(p.relative_to(export)): p.read_bytes() for p in sorted(export.rglob("*")) if p.is_file()}
    precision = "fp64" if model.dtype == torch.float64 else "fp32"
    content = UnifiedModel(files, predictor.branch.name, predictor.dataset.name, precision)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, pickle.dumps(content))
    return target


def _refuse(predictor: Predictor) -> None:
    """Refuses branches that LAMMPS cannot run in this way."""
    branch, encoder = predictor.branch, predictor.network.encoder
    reason, fix = "", "use ramify.lammps.attach, or export it with --format metatomic"
    if predictor.members:
        reason, fix = "it is a committee", "export one of its models, or use ramify.lammps.attach"
    elif predictor.dispersion is not None:
        reason, fix = "it adds dispersion", "load it without, and add pair_style dispersion/d3 in LAMMPS"
    elif branch.forces != "conservative":
        reason = "it predicts no forces" if branch.forces is None else "its forces are direct, without a virial"
    elif given := [name for name in STATES if name in branch.conditions]:
        reason = f"it takes {' and '.join(given)} as conditions (model.conditions), which LAMMPS does not pass"
    elif encoder.rounds > 1 and not encoder.takes_domains:
        reason = f"its encoder {type(encoder).__name__} does not exchange features between domains (`takes_domains`)"
    if reason:
        raise RamifyError(f"branch '{branch.name}' cannot run in `pair_style mliap unified`: {reason}", fix=fix)
