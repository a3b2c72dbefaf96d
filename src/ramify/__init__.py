"""Ramify pre-trains one graph neural network on many first-principles datasets: a shared encoder, and branches.

To use a trained model: `ramify.load`, `ramify.Calculator`; in LAMMPS: `ramify.lammps`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_LATER = {
    "load": "ramify.inference.model",
    "Model": "ramify.inference.model",
    "Calculator": "ramify.inference.integrations.ase",
    "TorchSimModel": "ramify.inference.integrations.torchsim",
}
"""What is imported when it is first asked for: PyTorch takes seconds to load, and most verbs do without it."""


_MODULES = {"lammps": "ramify.inference.integrations.lammps", "ipi": "ramify.inference.integrations.ipi"}
"""Modules for simulation programs, imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'ramify' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})
