"""Sampling rules: the fraction of each dataset in a batch.

To add a rule, add a function, its entry in `RULES`, and its name to the type of `train.sampling`.
"""

from collections.abc import Callable, Mapping

Rule = Callable[[int, float], float]
"""(structures of a dataset, `train.temperature`) -> its relative fraction of a batch."""


def proportional(structures: int, temperature: float) -> float:
    """Proportional to the number of structures: each structure is used equally often."""
    return float(structures)


def equal(structures: int, temperature: float) -> float:
    """Equal for all datasets: structures of small datasets are used more often."""
    return 1.0


def temperature(structures: int, temperature: float) -> float:
    """Between `proportional` and `equal`: number ** (1 / temperature)."""
    return float(structures) ** (1.0 / temperature)


RULES: dict[str, Rule] = {"proportional": proportional, "equal": equal, "temperature": temperature}


def sampling_weights(
    sizes: Mapping[str, int], sampling: str | Mapping[str, float], temperature: float
) -> dict[str, float]:
    """Relative fraction of each dataset: by a rule, or its size times a factor."""
    if not isinstance(sampling, str):
        return {name: size * sampling.get(name, 1.0) for name, size in sizes.items()}
    return {name: RULES[sampling](size, temperature) for name, size in sizes.items()}
