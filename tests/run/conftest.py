"""The stores of the tests of training."""

from tests.train.conftest import MakeRecipe, one_thread, prepared, small

__all__ = ["MakeRecipe", "one_thread", "prepared", "small"]
