"""Encoders from the layers of PyTorch Geometric, which is an optional dependency."""

import torch

from ramify.errors import RamifyError

_own = torch.index_select, torch.select
try:
    import torch_geometric  # noqa: F401
except ImportError as error:
    raise RamifyError(
        f"model.encoder.kind: pyg needs the package torch_geometric ({error})", fix="pip install 'ramify[pyg]'"
    ) from error
# it replaces these two for its `HashTensor`, by functions that TorchScript (metatomic) cannot compile
torch.index_select, torch.select = _own
