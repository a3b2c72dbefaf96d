"""The benchmark of the data on small stores: the form of its results, without a check of the figures."""

from pathlib import Path

import pytest
from benchmarks.data import rates, waiting
from benchmarks.data.parts import DataBench

from ramify.errors import RamifyError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.02)
    monkeypatch.setattr(waiting, "WARMUP", 2)


def test_every_part_on_one_process(tmp_path: Path, quick: None) -> None:
    bench = DataBench(folder=tmp_path, structures=3000, seconds=0.1, width=16, steps=1, turns=2, file_bytes=1 << 22)
    found = bench.run(["mapped", "adios", "waiting"])
    assert list(found) == ["machine", "mapped", "adios", "waiting"]
    molecules, crystals = found["mapped"]["molecules"], found["mapped"]["crystals"]
    assert (molecules["structures"], crystals["structures"]) == (3000, 750)
    assert 19 < molecules["atoms_per_structure"] < 21
    assert crystals["atoms_per_structure"] == 8
    assert molecules["without_edges"]["structures_per_cpu_s"] > molecules["with_edges"]["structures_per_cpu_s"] > 0
    adios = found["adios"]
    assert adios["back_bit_identical"] is True
    ratios = [turn["convert"] / turn["machine_write"] for turn in adios["turns"]]
    assert adios["convert_over_machine"] == pytest.approx(sum(ratios) / 2)
    assert adios["bulk_read_over_machine_without_keeping"] > 0
    assert all(len(c["turns"]) == 3 for c in found["waiting"]["consumer"])
    assert [c["workers"] for c in found["waiting"]["consumer"]] == [1, 2]
    assert 0 <= found["waiting"]["step"]["waited_share"] < 1
    assert not list(tmp_path.iterdir())  # stores are removed


def test_unknown_part(tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match=r"disks .*mapped, adios"):
        DataBench(folder=tmp_path).run(["disks"])
