"""`PyG`: convolutions and networks of PyTorch Geometric as encoders; equations in `convolutions` and `networks`."""

from torch import Tensor, nn
from torch_geometric.nn.dense import Linear

from ramify.model.encoders.base import Encoder, element_embedding
from ramify.model.encoders.pyg.convolutions import CONVOLUTIONS, LOOPED, ConvolutionLayer
from ramify.model.encoders.pyg.edges import Edges
from ramify.model.encoders.pyg.networks import DimeNetPP, SchNetLayer, ViSNet
from ramify.model.graph import Graph
from ramify.model.radial import BesselBasis
from ramify.recipe.encoder import PyGOptions


class PyG(Encoder):
    """An embedding of the atomic numbers, then the layers of `options.layer`; only ViSNet has vectors."""

    Options = PyGOptions
    takes_conditions = True

    def __init__(self, options: PyGOptions) -> None:
        super().__init__(options, vector_channels=options.width if options.layer == "visnet" else 0)
        self.basis = BesselBasis(options.radial, options.cutoff)
        self.embedding = element_embedding(options.elements, options.width)
        self.layers = nn.ModuleList()
        self.network: DimeNetPP | ViSNet | None = None
        self.looped = options.layer in LOOPED
        if options.layer == "dimenet++":
            self.network = DimeNetPP(options)
            self.rounds += 1  # the first messages
        elif options.layer == "visnet":
            self.network = ViSNet(options)
            self.rounds += 1  # the embedding of neighbours
        else:
            self.layers.extend(_layer(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)
        _use_linears_of_torch(self)

    def forward(self, graph: Graph) -> tuple[Tensor, Tensor | None]:
        """Invariant scalars (N, width), and with ViSNet equivariant vectors (N, 3, width)."""
        scalars, vectors = self.embed(graph), None
        edges = Edges.of(graph, self.basis(graph.distance))
        if self.network is not None:
            scalars, vectors = self.network(scalars, graph, edges, self.through)
        elif self.looped:
            edges = edges.with_loops(scalars.shape[0])
        for layer in self.layers:
            scalars = self.through(layer, scalars, edges)
        return self.norm(scalars), vectors


def _layer(options: PyGOptions) -> nn.Module:
    if options.layer == "schnet":
        return SchNetLayer(options)
    return ConvolutionLayer(CONVOLUTIONS[options.layer](options), options.width)


def _use_linears_of_torch(module: nn.Module) -> None:
    """Replaces the linear layers of PyTorch Geometric by those of PyTorch, to which fine-tuning can add updates."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                linear = nn.utils.skip_init(nn.Linear, child.in_channels, child.out_channels, child.bias is not None)
                linear.weight, linear.bias = child.weight, child.bias
                setattr(parent, name, linear)
