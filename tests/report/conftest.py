"""The run directory with planted errors."""

from tests.planted import make_run, planted, run

__all__ = ["make_run", "planted", "run"]
