"""The pages about using a model and about simulations, executed."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.pages import Block, printed, walk

pytestmark = pytest.mark.timeout(600)


def left_out(block: Block) -> bool:
    """A benchmark, which takes minutes and a model that takes longer; or what needs an optional package that is not
    there."""
    named = re.match(r"# needs (\w+)\n", block.text)
    return "benchmarks/" in block.text or (named is not None and importlib.util.find_spec(named[1]) is None)


@pytest.mark.slow
def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Every ```text block below a ```python block is that block's output."""
    shown = printed(walk("docs/using.md", tmp_path, skip=left_out))
    assert len(shown) >= 5
    for said, text in shown:
        assert said.strip() == text.strip()
    for name in ("predicted.extxyz", "all.extxyz", "relaxed.extxyz", "md.extxyz", "model/README.md"):
        assert (tmp_path / name).exists()


@pytest.mark.slow
def test_the_page_on_simulations_prints_what_it_says(tmp_path: Path) -> None:
    shown = printed(walk("docs/simulations.md", tmp_path, skip=left_out))
    assert len(shown) >= 1
    for said, text in shown:
        assert said.strip() == text.strip()
