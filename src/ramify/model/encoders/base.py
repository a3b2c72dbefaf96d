"""The contract of an encoder, and what encoders share: the start of an atom's scalars, and checkpointing of layers."""

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ramify.elements import MAX_NUMBER, element_features
from ramify.model.graph import Graph
from ramify.recipe import EncoderOptions


class Encoder(nn.Module):
    """Maps a `Graph` to features of its atoms. Subclass it to add an architecture (`docs/encoders.md`).

    An encoder must be invariant to translation, permutation of atoms and choice of periodic images; its scalars must
    not change under rotation and reflection, and its vectors must turn with the structure. It takes every weight of an
    edge from `graph.weight`, so that features are smooth where a neighbourhood ends and an edge of weight 0 changes
    nothing. It must accept graphs without edges. No value of a tensor may be read in Python (no `.item()`, no `if` on
    tensors), so that passes can be compiled, exported and run on meta tensors. The suite `ramify.testing.encoders`
    tests all of this.

    Linear maps that fine-tuning by low-rank updates should reach are `nn.Linear`, applied by calling them or by
    `ramify.model.lora.weight_of`.

    Args:
        options: of the recipe.

    Attributes:
        Options: the recipe keys of this kind.
        width: scalar features per atom, F.
        vector_channels: vector features per atom, C; 0 where the encoder makes no vectors, and direct forces cannot be
            had.
        rounds: of message passing; features depend on atoms at most that many edges away.
        checkpointing: see `through`; set by who trains.
    """

    Options: ClassVar[type[EncoderOptions]]
    checkpointing = False

    def __init__(self, options: EncoderOptions, *, vector_channels: int) -> None:
        super().__init__()
        self.width, self.vector_channels = options.width, vector_channels
        self.rounds = options.layers

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Invariant scalars (N, F) and equivariant vectors (N, 3, C), or None where C is 0."""
        raise NotImplementedError

    def through(self, layer: nn.Module, *inputs: Any) -> Any:
        """Calls a layer; with `checkpointing`, only `inputs` are kept for the backward pass, which runs it again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return layer(*inputs)
        # nothing in a layer is random; without early stops derivatives of derivatives find all they need
        with set_checkpoint_early_stop(False):
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


def normalised(vectors: Tensor) -> Tensor:
    """Vectors (N, 3, C), or tensors (N, 5, C), divided by sqrt(1 + their mean square): short ones as they are, long
    ones of length about 1.

    What layer normalisation is to scalars, with a smooth floor because vectors start at zero. Without it messages,
    which grow with vectors and multiply them, square their size from layer to layer until crowded structures overflow.
    """
    return vectors * torch.rsqrt(1.0 + vectors.square().sum(1, keepdim=True).mean(2, keepdim=True))


class ElementFeatures(nn.Module):
    """Scalars that are linear in `element_features`: elements differ by nothing but their place in the periodic table.

    For data of few structures per element. An embedding has free numbers for every element, which a network that has
    seen an element in one or two materials uses to learn these by heart.
    """

    table: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        features = torch.from_numpy(element_features())
        self.weight = nn.Parameter(torch.randn(features.shape[1], width) / math.sqrt(features.shape[1]))
        self.register_buffer("table", features.to(self.weight), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers -> (N, width), in the precision of the weights."""
        return (self.table @ self.weight).to(self.table.dtype).index_select(0, numbers)


@torch.no_grad()
def relate_elements(weight: Tensor) -> None:
    """Starts an embedding (119, width) from a random projection of `element_features`, with a third of itself."""
    features = torch.from_numpy(element_features()).to(weight)
    projection = torch.randn(features.shape[1], weight.shape[1]) / math.sqrt(features.shape[1])
    weight.mul_(0.3).add_(features @ projection)


def element_embedding(kind: Literal["periodic-table", "random", "features"], width: int) -> nn.Module:
    """Atomic numbers (N,) -> scalars (N, width), as `model.encoder.elements` says."""
    if kind == "features":
        return ElementFeatures(width)
    embedding = nn.Embedding(MAX_NUMBER + 1, width)
    if kind == "periodic-table":
        relate_elements(embedding.weight)
    return embedding
