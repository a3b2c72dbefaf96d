"""The page about fine-tuning, executed."""

import json
from pathlib import Path

import pytest

from tests.docs.pages import printed, walk

pytestmark = pytest.mark.timeout(600)


@pytest.mark.slow
def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Every ```text block below a ```python block is that block's output."""
    # a benchmark takes an hour, and data that do not come along
    shown = printed(walk("docs/finetune.md", tmp_path, skip=lambda block: "benchmarks/" in block.text))
    assert len(shown) == 3
    for said, text in shown:
        assert said.strip() == text.strip()
    for run in ("tuned", "tuned-more", "tuned-lora", "tuned-frozen", "tuned-replay", "untouched"):
        report = json.loads((tmp_path / run / "finetune.json").read_text())
        assert report["missing"] == []
        assert len(report["before"]) == len(report["after"])
