"""The page about fine-tuning does what it says."""

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.test_docs import ROOT, blocks, follow

pytestmark = pytest.mark.timeout(600)


def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Every ```text block below a ```python block is that block's output."""
    found = blocks(ROOT / "docs/finetune.md")
    checked = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contextlib.chdir(tmp_path), pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("COLUMNS", "120")
            for block, below in zip(found, [*found[1:], None], strict=True):
                if "benchmarks/" in block.text:  # takes an hour, and data that do not come along
                    continue
                said = follow(block)
                if block.language == "python" and below is not None and below.language == "text":
                    assert said.strip() == below.text.strip()
                    checked += 1
    finally:
        torch.set_num_threads(threads)
    assert checked == 3
    for run in ("tuned", "tuned-more", "tuned-lora", "tuned-frozen", "tuned-replay", "untouched"):
        report = json.loads((tmp_path / run / "finetune.json").read_text())
        assert report["missing"] == []
        assert len(report["before"]) == len(report["after"])
