"""Ramify pre-trains one graph neural network on many first-principles datasets: a shared encoder, and branches."""

__version__ = "0.1.0"
