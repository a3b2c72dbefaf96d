"""Models of other packages, as functions from a batch of Ramify and its edges to energies, and to direct forces.

Each package is optional. Sizes are the published defaults of each model where the name does not state others; cutoffs
are 5 Å. Edges come from the batch (TorchMD-NET finds its own, which are the same pairs), and the triplets of DimeNet++
are made here, so that no compiled extension of PyTorch Geometric is needed."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from ramify.batches.batch import Batch

CUTOFF = 5.0
Predict = Callable[[nn.Module, Batch, Tensor], Tensor | tuple[Tensor, Tensor]]
"""(model, batch, positions (N, 3)) -> energies (S,), and forces (N, 3) where the model has its own."""
Made = tuple[nn.Module, Predict]


def mace(hidden: str) -> Callable[[Batch], Made]:
    """MACE (Batatia et al., arXiv:2206.07697): two layers, l = 3, correlation 3, with these hidden irreps."""

    def make(batch: Batch) -> Made:
        from e3nn import o3
        from mace.modules import ScaleShiftMACE, interaction_classes

        elements = sorted(set(batch.numbers.tolist()))
        block = interaction_classes["RealAgnosticResidualInteractionBlock"]
        model = ScaleShiftMACE(
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
            r_max=CUTOFF,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=len(elements),
            hidden_irreps=o3.Irreps(hidden),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(len(elements)),
            avg_num_neighbors=len(batch.receiver) / len(batch.numbers),
            atomic_numbers=elements,
            correlation=3,
            gate=nn.functional.silu,
        )
        return model, energies

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        numbers: Tensor = model.atomic_numbers
        data = {
            "positions": positions,
            "node_attrs": (now.numbers[:, None] == numbers).to(positions.dtype),
            "edge_index": torch.stack([now.sender, now.receiver]),
            "shifts": -now.shift,
            "unit_shifts": torch.zeros_like(now.shift),
            "cell": positions.new_zeros(3 * len(now.n_atoms), 3),
            "batch": now.structure,
            "ptr": torch.cat([now.numbers.new_zeros(1), now.n_atoms.long().cumsum(0)]),
            "head": torch.zeros(len(now.n_atoms), dtype=torch.long),
        }
        found: Tensor = model(data, training=True, compute_force=False)["energy"]
        return found

    return make


def painn(_: Batch) -> Made:
    """PaiNN of SchNetPack (Schütt et al., arXiv:2102.03150): three layers of 128."""
    from schnetpack.atomistic import Atomwise
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.representation import PaiNN

    model = nn.Module()
    model.body = PaiNN(128, 3, GaussianRBF(20, CUTOFF), CosineCutoff(CUTOFF))
    model.head = Atomwise(n_in=128, output_key="energy")

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        vector = positions[now.sender] - positions[now.receiver] + now.shift
        inputs = {
            "_atomic_numbers": now.numbers,
            "_Rij": vector,
            "_idx_i": now.receiver,
            "_idx_j": now.sender,
            "_idx_m": now.structure,
            "_n_atoms": now.n_atoms.long(),
        }
        found: Tensor = model.head(model.body(inputs))["energy"]
        return found

    return model, energies


def tensornet(_: Batch) -> Made:
    """TensorNet of TorchMD-NET (Simeon and De Fabritiis, arXiv:2306.06482): two layers of 128."""
    from torchmdnet.models.model import TorchMD_Net
    from torchmdnet.models.output_modules import Scalar
    from torchmdnet.models.tensornet import TensorNet

    body = TensorNet(hidden_channels=128, num_layers=2, cutoff_upper=CUTOFF, static_shapes=False)
    model = TorchMD_Net(body, Scalar(128), derivative=False)

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        found: Tensor = model(now.numbers, positions, now.structure)[0]
        return found.squeeze(1)

    return model, energies


def nequip(batch: Batch) -> Made:
    """NequIP (Batzner et al., arXiv:2101.03164): three layers, l = 2, 32 features."""
    from nequip.data import AtomicDataDict
    from nequip.model import NequIPGNNEnergyModel

    elements = sorted(set(batch.numbers.tolist()))
    model = NequIPGNNEnergyModel(
        seed=0,
        model_dtype="float32",
        type_names=[str(z) for z in elements],
        r_max=CUTOFF,
        num_layers=3,
        l_max=2,
        num_features=32,
        avg_num_neighbors=len(batch.receiver) / len(batch.numbers),
    )

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        kinds = torch.searchsorted(torch.tensor(elements), now.numbers)
        data = {
            AtomicDataDict.POSITIONS_KEY: positions,
            AtomicDataDict.EDGE_INDEX_KEY: torch.stack([now.receiver, now.sender]),
            AtomicDataDict.ATOM_TYPE_KEY: kinds,
            AtomicDataDict.BATCH_KEY: now.structure,
            AtomicDataDict.NUM_NODES_KEY: now.n_atoms.long(),
        }
        found: Tensor = model(data)[AtomicDataDict.TOTAL_ENERGY_KEY]
        return found.squeeze(1)

    return model, energies


def schnet(batch: Batch) -> Made:
    """SchNet of PyTorch Geometric (Schütt et al., arXiv:1706.08566): six blocks of 128."""
    from torch_geometric.nn import SchNet

    class Interaction(nn.Module):
        def forward(self, positions: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            edges = torch.stack([batch_now[0].sender, batch_now[0].receiver])
            return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=1)

    batch_now = [batch]

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        batch_now[0] = now
        found: Tensor = model(now.numbers, positions, now.structure)
        return found.squeeze(1)

    return SchNet(cutoff=CUTOFF, interaction_graph=Interaction()), energies


def dimenet(_: Batch) -> Made:
    """DimeNet++ of PyTorch Geometric (Gasteiger et al., arXiv:2011.14115): four blocks of 128, as in its paper."""
    from torch_geometric.nn import DimeNetPlusPlus
    from torch_geometric.nn.models import dimenet as module

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        edges = torch.stack([now.sender, now.receiver])
        with (
            mock.patch.object(module, "radius_graph", return_value=edges),
            mock.patch.object(module, "triplets", return_value=triplets(now.sender, now.receiver)),
        ):
            found: Tensor = model(now.numbers, positions, now.structure)
        return found.squeeze(1)

    sizes: dict[str, Any] = {
        "hidden_channels": 128,
        "int_emb_size": 64,
        "basis_emb_size": 8,
        "out_emb_channels": 256,
    }
    return DimeNetPlusPlus(
        out_channels=1, num_blocks=4, num_spherical=7, num_radial=6, cutoff=CUTOFF, **sizes
    ), energies


def hydragnn(width: int, head: int, *, direct: bool) -> Callable[[Batch], Made]:
    """EGNN of HydraGNN (github.com/ORNL/HydraGNN), the implementation of the paper: four layers, heads of three layers,
    a branch for each segment of the batch; atomic numbers and positions as inputs, as in the paper's configuration."""

    def make(batch: Batch) -> Made:
        from hydragnn.models.create import create_model

        names = [f"branch-{number}" for number in range(len(batch.segments))]
        layers = {"num_headlayers": 3, "dim_headlayers": [head] * 3}
        shared = {"num_sharedlayers": 2, "dim_sharedlayers": 50}
        heads = {"graph": [{"type": name, "architecture": shared | layers} for name in names]}
        if direct:
            heads["node"] = [{"type": name, "architecture": {"type": "mlp"} | layers} for name in names]
        model = create_model(
            mpnn_type="EGNN",
            input_dim=4,
            hidden_dim=width,
            output_dim=[1, 3] if direct else [1],
            pe_dim=1,
            global_attn_engine="",
            global_attn_type="",
            global_attn_heads=8,
            output_type=["graph", "node"] if direct else ["graph"],
            output_heads=heads,
            activation_function="relu" if direct else "silu",  # second derivatives of ReLU are zero
            loss_function_type="mae",
            task_weights=[1, 100] if direct else [1],
            num_conv_layers=4,
            edge_dim=1,
            equivariance=True,
            use_gpu=False,
        )
        return model, predict

    def predict(model: nn.Module, now: Batch, positions: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        from torch_geometric.data import Data

        branch = torch.repeat_interleave(torch.tensor([s.structures.stop - s.structures.start for s in now.segments]))
        data = Data(
            x=torch.cat([now.numbers[:, None].to(positions.dtype), positions], dim=1),
            pos=positions,
            edge_index=torch.stack([now.receiver, now.sender]),
            edge_attr=(positions[now.sender] - positions[now.receiver] + now.shift).norm(dim=1, keepdim=True),
            edge_shifts=now.shift,
            batch=now.structure,
            dataset_name=branch[:, None],
        )
        found = model(data)
        energy: Tensor = found[0].squeeze(1)
        return (energy, found[1]) if direct else energy

    return make


def triplets(sender: Tensor, receiver: Tensor) -> tuple[Tensor, ...]:
    """Pairs of edges k -> j -> i with k other than i, as the function of the same name of PyTorch Geometric."""
    counts = torch.bincount(receiver, minlength=int(sender.max()) + 1)  # receivers are sorted
    starts, into = counts.cumsum(0) - counts, counts[sender]
    second = torch.arange(len(sender)).repeat_interleave(into)  # j -> i
    first = torch.arange(len(second)) - (into.cumsum(0) - into)[second] + starts[sender[second]]  # k -> j
    other = sender[first] != receiver[second]
    first, second = first[other], second[other]
    return receiver, sender, receiver[second], sender[second], sender[first], first, second


OTHERS: dict[str, tuple[str, Callable[[Batch], Made]]] = {
    "MACE 32x0e": ("mace-torch", mace("32x0e")),
    "MACE 32x0e+32x1o": ("mace-torch", mace("32x0e + 32x1o")),
    "SchNetPack PaiNN 3 x 128": ("schnetpack", painn),
    "TorchMD-NET TensorNet 2 x 128": ("torchmd-net", tensornet),
    "NequIP 3 x 32, l = 2": ("nequip", nequip),
    "PyG SchNet 6 x 128": ("torch-geometric", schnet),
    "PyG DimeNet++ 4 x 128": ("torch-geometric", dimenet),
    "HydraGNN 4 x 128": ("hydragnn", hydragnn(128, 128, direct=False)),
    "HydraGNN 4 x 128, direct": ("hydragnn", hydragnn(128, 128, direct=True)),
    "HydraGNN 4 x 866": ("hydragnn", hydragnn(866, 889, direct=False)),
    "HydraGNN 4 x 866, direct": ("hydragnn", hydragnn(866, 889, direct=True)),
}
"""Name -> (distribution, constructor). All but HydraGNN are on PyPI; it is installed from its repository."""
