"""The page about using a model does what it says."""

import contextlib
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.test_docs import ROOT, Block, blocks, follow

pytestmark = pytest.mark.timeout(600)


def absent(block: Block) -> str | None:
    """The optional package that a block needs and that is not there."""
    named = re.match(r"# needs (\w+)\n", block.text)
    return named[1] if named and importlib.util.find_spec(named[1]) is None else None


def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Every ```text block below a ```python block is that block's output."""
    found = blocks(ROOT / "docs/using.md")
    checked = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("COLUMNS", "120")
            for block, below in zip(found, [*found[1:], None], strict=True):
                if absent(block) or "benchmarks/" in block.text:  # those take minutes, and a model that takes longer
                    continue
                said = follow(block)
                if block.language == "python" and below is not None and below.language == "text":
                    assert said.strip() == below.text.strip()
                    checked += 1
    finally:
        torch.set_num_threads(threads)
    assert checked >= 5
    for name in ("predicted.extxyz", "all.extxyz", "relaxed.extxyz", "md.extxyz", "model/README.md"):
        assert (tmp_path / name).exists()
