"""A training step of widely used models and of Ramify, on the same molecules and edges. Prints JSON.

    OMP_NUM_THREADS=1 python -m benchmarks.step.models paper five --dataset qm7x --stores stores

Models of packages that are not installed are skipped, and the output names the package: SchNet and DimeNet++ need
`torch_geometric`, an equivariant network of tensor products needs `e3nn`. None needs compiled extensions: edges come
from the store, and the triplets of DimeNet++ are made here. Sizes are their published defaults. Every step
computes energies, forces as their derivatives, a loss of mean absolute errors, its gradient and an update by AdamW, in
float32.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from benchmarks.step.forms import make
from torch import Tensor, nn

from ramify.batches.batch import Batch
from ramify.batches.loader import StepBatches
from ramify.bench.step import chosen
from ramify.recipe import Recipe, load_recipe
from ramify.train.start import configure_process

Energies = Callable[[nn.Module, Batch, Tensor], Tensor]
"""(model, batch, positions) -> (S,)."""


def schnet(batch: Batch) -> tuple[nn.Module, Energies]:
    """Schütt et al., arXiv:1706.08566, as in PyG: 6 blocks of 128."""
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

    return SchNet(cutoff=5.0, interaction_graph=Interaction()), energies


def dimenet(_: Batch) -> tuple[nn.Module, Energies]:
    """Gasteiger et al., arXiv:2011.14115, as in PyG: 4 blocks of 128, the sizes of its paper."""
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

    sizes = {"hidden_channels": 128, "int_emb_size": 64, "basis_emb_size": 8, "out_emb_channels": 256}
    return DimeNetPlusPlus(out_channels=1, num_blocks=4, num_spherical=7, num_radial=6, cutoff=5.0, **sizes), energies


def triplets(sender: Tensor, receiver: Tensor) -> tuple[Tensor, ...]:
    """Pairs of edges k -> j -> i with k other than i, as the PyG function of the same name."""
    counts = torch.bincount(receiver, minlength=int(sender.max()) + 1)  # receivers are sorted
    starts, into = counts.cumsum(0) - counts, counts[sender]
    second = torch.arange(len(sender)).repeat_interleave(into)  # j -> i
    first = torch.arange(len(second)) - (into.cumsum(0) - into)[second] + starts[sender[second]]  # k -> j
    other = sender[first] != receiver[second]
    first, second = first[other], second[other]
    return receiver, sender, receiver[second], sender[second], sender[first], first, second


def tensor_products(batch: Batch) -> tuple[nn.Module, Energies]:
    """`SimpleNetwork` of e3nn (arXiv:2207.09453) with its defaults: 3 layers, 50 of each irrep up to l = 2."""
    from e3nn.nn.models.v2106.gate_points_networks import SimpleNetwork

    elements = batch.numbers.unique()

    class Network(SimpleNetwork):
        def preprocess(self, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
            vector = data["pos"][data["sender"]] - data["pos"][data["receiver"]]
            return data["batch"], data["x"], data["sender"], data["receiver"], vector

    def energies(model: nn.Module, now: Batch, positions: Tensor) -> Tensor:
        kinds = (now.numbers[:, None] == elements).to(positions.dtype)
        edges = {"sender": now.sender, "receiver": now.receiver}
        found: Tensor = model({"pos": positions, "x": kinds, "batch": now.structure, **edges})
        return found.squeeze(1)

    neighbors = len(batch.receiver) / len(batch.numbers)
    atoms = len(batch.numbers) / len(batch.n_atoms)
    model = Network(f"{len(elements)}x0e", "1x0e", 5.0, num_neighbors=neighbors, num_nodes=atoms)
    return model, energies


OTHERS = {
    "SchNet": ("torch_geometric", schnet),
    "DimeNet++": ("torch_geometric", dimenet),
    "e3nn SimpleNetwork": ("e3nn", tensor_products),
}


class Other:
    """Training steps of a model of another package."""

    def __init__(self, build: Callable[[Batch], tuple[nn.Module, Energies]], batch: Batch) -> None:
        torch.manual_seed(0)
        self.model, self._energies = build(batch)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, work: StepBatches) -> None:
        """Forward pass, backward pass and update."""
        (batch,) = work.batches
        positions = batch.positions.detach().requires_grad_()
        energy = self._energies(self.model, batch, positions)
        (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        loss = (energy / batch.n_atoms - batch.energy).abs().mean() + 10.0 * (-slope - batch.forces).abs().mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


class Own:
    """Training steps of Ramify."""

    def __init__(self, recipe: Recipe) -> None:
        self._trainer = make("product", recipe)
        self.model = self._trainer.model

    def step(self, work: StepBatches) -> None:
        """A step as in training, with averages of weights."""
        self._trainer.step(work)


def measure(steppers: Mapping[str, Own | Other], works: list[StepBatches]) -> dict[str, dict[str, Any]]:
    """Seconds of every model with alternating steps; the first three are untimed, since TorchScript optimises in
    them."""
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for number, work in enumerate([works[0]] * 3 + works):
        for name, stepper in steppers.items():
            began = time.perf_counter()
            stepper.step(work)
            if number >= 3:
                seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "parameters": sum(p.numel() for p in stepper.model.parameters()),
        }
        for name, stepper in steppers.items()
    }


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="recipes of Ramify's models")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--stores", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_intermixed_args()
    always = [f"stores={given.stores}", f"train.batch={given.batch}", "model.force_head.kind=conservative"]
    recipes = {name: chosen(load_recipe(name, always), [given.dataset]) for name in given.recipes}
    configure_process(next(iter(recipes.values())))
    with make("product", next(iter(recipes.values()))).loader() as loader:
        works = [next(loader) for _ in range(given.steps)]
    steppers: dict[str, Own | Other] = {f"ramify {name}": Own(recipe) for name, recipe in recipes.items()}
    missing = []
    for name, (package, build) in OTHERS.items():
        if find_spec(package) is None:
            missing.append(f"{name}: skipped, since `{package}` is not installed (pip install {package})")
        else:
            steppers[name] = Other(build, works[0].batches[0])
    found = {
        "models": measure(steppers, works),
        "left_out": missing,
        "atoms": statistics.mean(len(work.batches[0].numbers) for work in works),
        "edges": statistics.mean(len(work.batches[0].receiver) for work in works),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
