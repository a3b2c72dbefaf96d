"""Test suites for extensions of this package. They need pytest: `pip install ramify[testing]`."""
