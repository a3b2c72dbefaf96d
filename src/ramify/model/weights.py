"""Parameters and buffers of a model by name, and passes with other tensors in their place.

`torch.func.functional_call` with the names of `Module.named_parameters` exchanges the tensors of a module that has two
names twice, and then leaves the new tensors in it. So every module is listed by one name here, and every tensor by one
name in each module that has it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def weights_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, of all modules in `module`; a tensor of several modules has a name for each."""
    modules = list(module.named_modules())
    parameters = {
        _join(prefix, name): p for prefix, part in modules for name, p in part.named_parameters(recurse=False)
    }
    buffers = {_join(prefix, name): b for prefix, part in modules for name, b in part.named_buffers(recurse=False)}
    return parameters | buffers


def call_with_weights(module: nn.Module, weights: Mapping[str, Tensor], *arguments: Any) -> Any:
    """`module(*arguments)` with `weights`, named as by `weights_by_name`; afterwards the module has its own again."""
    return functional_call(module, dict(weights), arguments, tie_weights=False)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
