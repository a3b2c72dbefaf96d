"""Imported once, by the server that all ranks are forked from: these imports take longer than most tests."""

import os

import torch._dynamo  # what the first step of an optimizer imports

import ramify.cli
import ramify.search.search
import ramify.train.start
from ramify.sources.formats import formats
from tests import small

formats()  # their libraries
os.fsync = lambda handle: None  # as in tests/conftest.py
__all__ = ["ramify", "small", "torch"]
