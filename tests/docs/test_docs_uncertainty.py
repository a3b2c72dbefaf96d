"""The page about error bars, executed."""

from pathlib import Path

import pytest

from tests.docs.pages import printed, walk


@pytest.mark.slow
def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    """Every ```text block below a ```python block is that block's output."""
    # the measurement takes minutes, of data that do not come along
    shown = printed(walk("docs/uncertainty.md", tmp_path, skip=lambda block: "five" in block.text))
    assert len(shown) == 2
    for said, text in shown:
        assert said.strip() == text.strip()
