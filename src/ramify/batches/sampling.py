"""How a batch is shared out among datasets.

A new rule is a function here, its line in `RULES`, and its name in the type of `train.sampling`.
"""

from collections.abc import Callable, Mapping

Rule = Callable[[int, float], float]
"""(structures of a dataset, `train.temperature`) -> its relative share of a batch."""


def proportional(structures: int, temperature: float) -> float:
    """By number of structures: each is visited equally often."""
    return float(structures)


def equal(structures: int, temperature: float) -> float:
    """Every dataset alike: those of small ones are visited more often."""
    return 1.0


def temperature(structures: int, temperature: float) -> float:
    """Between the two: number ** (1 / temperature)."""
    return float(structures) ** (1.0 / temperature)


RULES: dict[str, Rule] = {"proportional": proportional, "equal": equal, "temperature": temperature}


def sampling_weights(
    sizes: Mapping[str, int], sampling: str | Mapping[str, float], temperature: float
) -> dict[str, float]:
    """Relative share of each dataset: by a rule, or its size times a factor of its own."""
    if not isinstance(sampling, str):
        return {name: size * sampling.get(name, 1.0) for name, size in sizes.items()}
    return {name: RULES[sampling](size, temperature) for name, size in sizes.items()}
