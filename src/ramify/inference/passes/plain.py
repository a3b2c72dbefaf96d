"""One pass of a branch for inference, with PyTorch's own operations.

Conservative branches are differentiated with respect to edge vectors and adaptive cutoffs, instead of positions and
strain: the tensors of a pass are then the same for molecules and crystals, few operations are recorded, and forces and
stress follow from one list of slopes (`ramify.inference.passes.inputs`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ramify.inference.passes.inputs import PassInputs
from ramify.model.multibranch import MultiBranch


@dataclass(frozen=True, slots=True)
class PassOutputs:
    """The results of a pass.

    Attributes:
        energy: (N,) eV of atoms, reference energies not included.
        slope: (E, 3) eV/Å, dE/dr of edges; None without conservative forces.
        cutoff_slope: (N,) eV/Å, derivatives with respect to adaptive cutoffs; None without conservative forces.
        forces: (N, 3) eV/Å, direct forces; None without.
        scalars: (N, F), features of the encoder.
        vectors: (N, 3, C), features of the encoder; None without direct forces.
        labels: further labels by name, (S,) in their units of errors.
    """

    energy: Tensor
    slope: Tensor | None
    cutoff_slope: Tensor | None
    forces: Tensor | None
    scalars: Tensor
    vectors: Tensor | None
    labels: Mapping[str, Tensor]


Pass = Callable[[PassInputs], PassOutputs]


class BranchPass(nn.Module):
    """The encoder and one branch of a network as a function of `PassInputs`.

    Its results are the tensors of `PassOutputs` that the branch has; `outputs` restores the names.
    """

    def __init__(self, network: MultiBranch, branch: str) -> None:
        super().__init__()
        self.encoder, self.branch, self.repulsion = network.encoder, network.branch(branch), network.repulsion

    def forward(self, given: PassInputs) -> tuple[Tensor, ...]:
        """See the class."""
        branch = self.branch
        conservative = branch.forces == "conservative"
        with torch.set_grad_enabled(conservative):
            vector, atom_cutoff = (t.detach().requires_grad_(conservative) for t in (given.vector, given.atom_cutoff))
            graph = replace(given, vector=vector, atom_cutoff=atom_cutoff).graph()
            scalars, vectors = self.encoder.forward(graph)
            energy = branch.atom_energies(scalars)
            if self.repulsion is not None:
                energy = energy + self.repulsion(graph)
            found = [energy.detach()]
            if conservative:
                wanted = (vector, atom_cutoff)
                slopes = torch.autograd.grad(energy.sum(), wanted, allow_unused=True)  # unused without edges
                found += [torch.zeros_like(w) if s is None else s for s, w in zip(slopes, wanted, strict=True)]
        if branch.forces == "direct":
            assert vectors is not None, "`build_model` refuses direct forces from an encoder without vectors"
            found += [branch.direct_forces(scalars, vectors), vectors]
        found.append(scalars.detach())
        found += [head(scalars.detach(), given.structure, given.n_atoms) for head in branch.labels.values()]
        return tuple(found)

    def outputs(self, found: tuple[Tensor, ...]) -> PassOutputs:
        """The results of `forward` by name."""
        energy, *rest = found
        conservative, direct = self.branch.forces == "conservative", self.branch.forces == "direct"
        slope, cutoff_slope = (rest.pop(0), rest.pop(0)) if conservative else (None, None)
        forces, vectors = (rest.pop(0), rest.pop(0)) if direct else (None, None)
        scalars, *labels = rest
        by_name = dict(zip(self.branch.labels, labels, strict=True))
        return PassOutputs(energy, slope, cutoff_slope, forces, scalars, vectors, by_name)


class PlainPass:
    """A `Pass` that runs the modules of the network."""

    def __init__(self, network: MultiBranch, branch: str) -> None:
        self._module = BranchPass(network, branch)

    def __call__(self, inputs: PassInputs) -> PassOutputs:
        """Runs one pass."""
        with torch.inference_mode(False), torch.no_grad():  # conservative forces need gradients
            return self._module.outputs(self._module.forward(inputs))
