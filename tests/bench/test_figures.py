"""Figures of scaling show every placement that was measured."""

from pathlib import Path

from ramify.bench.figures import draw_scaling


def test_every_placement_has_a_line(tmp_path: Path) -> None:
    """Also where there are more of them than markers."""
    names = [f"placement {letter}" for letter in "abcdefghijkl"]
    cases = [
        {"mode": "weak", "placement": name, "ranks": ranks, "seconds": 1.0 + k, "quartiles": [0.9 + k, 1.1 + k]}
        for k, name in enumerate(names)
        for ranks in (2, 4)
    ]
    draw_scaling({"cases": cases}, tmp_path)
    drawn = (tmp_path / "scale.svg").read_text()
    legend = drawn[drawn.index('id="legend') :]
    assert [name for name in names if name not in legend] == []
    assert (tmp_path / "scale.png").stat().st_size > 1000
