"""Passes with other tensors in the place of weights leave the module as it was, however its tensors are shared."""

import pytest
import torch
from torch import Tensor, nn

from ramify.model.weights import call_with_weights, weights_by_name


class Shared(nn.Module):
    """One module with two names, one parameter in two modules, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.tied(self.again(self.first(x))) + self.shift
        return found


def test_names_are_those_of_each_distinct_module() -> None:
    assert list(weights_by_name(Shared())) == ["first.weight", "first.bias", "tied.weight", "tied.bias", "shift"]


@pytest.mark.parametrize("fails", [False, True])
def test_other_tensors_are_used_and_the_own_ones_are_back(fails: bool) -> None:
    module, other, x = Shared(), Shared(), torch.randn(2, 5 if fails else 3)
    own = [id(tensor) for tensor in weights_by_name(module).values()]
    if fails:
        with pytest.raises(RuntimeError):
            call_with_weights(module, weights_by_name(other), x)
    else:
        assert torch.equal(call_with_weights(module, weights_by_name(other), x), other(x))
        assert not torch.equal(module(x), other(x))
    assert [id(tensor) for tensor in weights_by_name(module).values()] == own
