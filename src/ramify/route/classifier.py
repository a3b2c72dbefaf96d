"""A small classifier with calibrated confidence: multinomial logistic regression with temperature scaling.

The temperature divides the logits and is fitted to data that were not used for the weights (Guo et al.,
arXiv:1706.04599).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PENALTY = 1e-3
"""L2 regularisation: half of this times the squared weights is added to the mean loss."""
BINS = 15
"""Number of confidence bins in the expected calibration error, as in Guo et al."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """Probabilities of K classes from D features.

    Attributes:
        mean, scale: (D,) of the features that it was fitted to; constant features have scale 1.
        weight: (D, K), bias: (K,), temperature: of the logits.
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    temperature: float = 1.0

    def probabilities(self, features: Floats) -> Floats:
        """(S, D) -> (S, K), the sum of each row is 1."""
        logits = self.logits(features) / self.temperature
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def logits(self, features: Floats) -> Floats:
        """(S, D) -> (S, K), before the temperature."""
        return np.asarray((features - self.mean) / self.scale @ self.weight + self.bias)


def fit(features: Floats, labels: Labels, classes: int) -> Classifier:
    """Fits the weights by L-BFGS; all classes have the same weight, independent of their numbers of examples.

    Args:
        features: (S, D).
        labels: (S,) from 0, each class at least once.
        classes: K.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-8] = 1.0
    x, y = torch.from_numpy((features - mean) / scale), torch.from_numpy(labels)
    share = torch.bincount(y, minlength=classes).double()
    importance = (1.0 / share)[y] / classes
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        error = torch.nn.functional.cross_entropy(x @ weight + bias, y, reduction="none")
        total = (importance * error).sum() + 0.5 * PENALTY * weight.square().sum()
        total.backward()
        return float(total.detach())

    optimizer.step(loss)
    return Classifier(mean, scale, weight.detach().numpy(), bias.detach().numpy())


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """The temperature with the lowest mean log loss on (S, K) logits, from 0.05 to 20, with 1 % accuracy."""
    candidates = np.geomspace(0.05, 20.0, 600)
    losses = []
    for temperature in candidates:
        scaled = logits / temperature
        top = scaled.max(axis=1)
        normal = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        losses.append(float((normal - scaled[np.arange(len(labels)), labels]).mean()))
    return float(candidates[int(np.argmin(losses))])


def calibration_error(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean difference between confidence and accuracy over `BINS` bins of confidence,
    weighted by the number of examples in each."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    total = 0.0
    for k in np.unique(bins):
        inside = bins == k
        total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return float(total)
