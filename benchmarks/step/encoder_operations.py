"""Multiply-adds of one forward pass of every encoder with its default sizes, per atom and per edge, as JSON.

    python benchmarks/step/encoder_operations.py

Only matrix products count. An atom has as many slots in tables of neighbours as it has edges, 16.
"""

import json
from typing import get_args

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ramify.model.build import build_encoder
from ramify.model.graph import Graph
from ramify.model.kernels.counting import counting
from ramify.model.profile import Cost
from ramify.recipe.encoder import KINDS, PyGOptions, encoder_options

NEIGHBORS = 16


def operations(keys: dict[str, str]) -> dict[str, int]:
    """Multiply-adds of a forward pass per atom and per edge."""
    encoder = build_encoder(encoder_options(keys)).eval()

    def measure(atoms: int, edges: int, slots: int) -> float:
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, counting():
            ends = [torch.zeros(edges, dtype=torch.int64) for _ in range(2)]
            graph = Graph(
                numbers=torch.ones(atoms, dtype=torch.int64), receiver=ends[0], sender=ends[1],
                direction=torch.ones(edges, 3), distance=torch.ones(edges), weight=torch.ones(edges),
                slots=torch.arange(slots),
            )  # fmt: skip
            with torch.no_grad():
                encoder(graph)
        return counter.get_total_flops() / 2

    cost = Cost.fitted(measure)
    # products of edges and slots count for edges: then all slots of an atom, and the rest of it, are 16 edges less
    return {"per atom": round(cost.atom + NEIGHBORS * cost.slot), "per edge": round(cost.edge)}


if __name__ == "__main__":
    layers = [{"kind": "pyg", "layer": layer} for layer in get_args(PyGOptions.model_fields["layer"].annotation)]
    cases = [*({"kind": kind} for kind in KINDS if kind != "pyg"), *layers]
    print(json.dumps({" ".join(case.values()): operations(case) for case in cases}, indent=1))
