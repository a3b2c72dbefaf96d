"""The stores that the tests of training share."""

from tests.train.conftest import MakeRecipe, one_thread, prepared, small

__all__ = ["MakeRecipe", "one_thread", "prepared", "small"]
