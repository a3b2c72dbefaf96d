"""The two forms of a store: the same values to the bit in all ways to read them, and the same errors."""

import json
import shutil
import subprocess
from pathlib import Path

import adios2
import numpy as np
import pytest

from ramify.errors import RamifyError
from ramify.minicorpora import FILES
from ramify.prepare.prepare import prepare_dataset
from ramify.sources.formats import formats
from ramify.store import adios
from ramify.store.blocks import BLOCK_ROWS, BlockSums, block_sum, touched_blocks
from ramify.store.columns import COLUMNS
from ramify.store.convert import convert_store
from ramify.store.store import Store
from ramify.structures import STRUCTURE_COLUMNS, Structures
from tests.small import files_of, flip_byte

COMMON = ["manifest.json", "names.json", "quarantine.jsonl"]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of crystals with stress; not to be changed."""
    return prepared(tmp_path_factory.mktemp("stores"), "mapped")


@pytest.fixture(scope="module")
def converted(mapped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the form `adios`; not to be changed."""
    return convert_store(mapped, "adios", tmp_path_factory.mktemp("converted") / "crystals")


def prepared(stores: Path, form: adios.Form) -> Path:
    keys = {"format": "mptrj", "path": str(FILES["mptrj_mini"]), "gates": {"max_force": 2.0}}  # some are left out
    options = formats()["mptrj"].options.model_validate(keys)
    prepare_dataset("crystals", options, stores, base=Path(), form=form)
    return stores / "crystals"


def assert_equal(found: Structures, expected: Structures) -> None:
    for name in (*STRUCTURE_COLUMNS, "numbers", "positions", "forces"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert found.group_names == expected.group_names
    assert found.origin_names == expected.origin_names


def test_there_and_back_again(mapped: Path, converted: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in converted.iterdir()) == ["columns.bp", "columns.json", *COMMON]
    assert (converted / "manifest.json").read_bytes() == (mapped / "manifest.json").read_bytes()
    back = convert_store(converted, "mapped", tmp_path / "back")
    assert files_of(back) == files_of(mapped)


def test_in_place(mapped: Path, converted: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(mapped, tmp_path / "crystals"))
    heard: list[int] = []
    assert convert_store(copy, "adios", progress=heard.append) == copy
    assert (copy / "columns.bp").is_dir()
    assert not list(copy.glob("*.npy"))
    with Store.open(mapped) as store:
        size = sum(np.load(mapped / f"{name}.npy", mmap_mode="r").nbytes for name in store.manifest.columns)
    assert sum(heard) == size
    convert_store(copy, "mapped")
    assert files_of(copy) == files_of(mapped)
    assert [p.name for p in tmp_path.iterdir()] == ["crystals"]


def test_prepared_in_either_form_is_the_same(converted: Path, tmp_path: Path) -> None:
    made = prepared(tmp_path, "adios")
    for name in COMMON:
        assert (made / name).read_bytes() == (converted / name).read_bytes()
    assert_equal(Store.open(made).take(range(50)), Store.open(converted).take(range(50)))
    assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in converted.iterdir())
    assert prepared(tmp_path, "mapped") == made  # it is there already: nothing is made anew
    assert (made / "columns.bp").is_dir()


def test_the_stock_reader_reads_it(mapped: Path, converted: Path) -> None:
    """The reader of ADIOS2, without code of this project; columns have their units as attributes."""
    with adios2.FileReader(str(converted / "columns.bp")) as file:
        variables = file.available_variables()
        assert set(variables) == set(COLUMNS)
        for name in COLUMNS:
            np.testing.assert_array_equal(file.read(name), np.load(mapped / f"{name}.npy"))
        assert file.read_attribute("unit", "forces") == "eV/Å"
        assert file.read_attribute("unit", "energy") == "eV"


@pytest.mark.skipif(
    shutil.which("bpls") is None, reason="bpls comes with ADIOS2's own installation, not with its wheel"
)
def test_bpls_lists_it(converted: Path) -> None:
    listed = subprocess.run(
        ["bpls", "-la", converted / "columns.bp"], capture_output=True, text=True, check=True
    ).stdout
    for name in COLUMNS:
        assert f" {name} " in listed


@pytest.mark.parametrize("preload", [False, True])
def test_rows_are_the_same_wherever_they_come_from(mapped: Path, converted: Path, preload: bool) -> None:
    rng = np.random.default_rng(0)
    with Store.open(mapped) as expected, Store.open(mapped if preload else converted, preload=preload) as store:
        for size in (0, 1, 7, 200):
            rows = rng.integers(0, len(store), size)
            assert_equal(store.take(rows), expected.take(rows))
        assert store.manifest == expected.manifest


def test_a_column_longer_than_a_block(mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks of 64 rows every column has several, and the last is shorter."""
    rows = np.arange(0, len(Store.open(mapped)), 3)
    expected = Store.open(mapped).take(rows)
    for module in ("blocks", "files", "convert"):
        monkeypatch.setattr(f"ramify.store.{module}.BLOCK_ROWS", 64)
    monkeypatch.setattr("ramify.store.files.PIECE_BYTES", 5000)
    made = prepared(tmp_path, "mapped")
    manifest = Store.open(made).manifest
    assert manifest.blocks is not None
    assert {name: len(sums) for name, sums in manifest.blocks.items()} == {
        name: -(-column.shape[0] // 64) for name, column in manifest.columns.items()
    }
    other = convert_store(made, "adios", tmp_path / "adios")
    for store in (Store.open(made), Store.open(made, preload=True), Store.open(other)):
        with store:
            assert_equal(store.take(rows), expected)


def damage(path: Path, column: str) -> None:
    """Flips one bit of one value of a column, wherever the form keeps it."""
    if (path / "columns.bp").exists():
        values = np.load(path.parent / f"{column}.npy")
        data = bytearray((path / "columns.bp" / "data.0").read_bytes())
        at = bytes(data).index(values.tobytes())
        data[at + values.nbytes // 2] ^= 0x10
        (path / "columns.bp" / "data.0").write_bytes(data)
    else:
        flip_byte(path / f"{column}.npy")


@pytest.mark.parametrize("column", ["positions", "pbc", "energy", "row", "n_atoms", "stress"])
@pytest.mark.parametrize("form", ["mapped", "preload", "adios"])
def test_a_flipped_bit_never_becomes_a_number(
    mapped: Path, converted: Path, tmp_path: Path, form: str, column: str
) -> None:
    copy = Path(shutil.copytree(converted if form == "adios" else mapped, tmp_path / "copy"))
    shutil.copyfile(mapped / f"{column}.npy", tmp_path / f"{column}.npy")
    damage(copy, column)
    with pytest.raises(RamifyError, match=rf"damaged.*column {column} .*\n  fix: prepare the dataset again"):
        Store.open(copy, preload=form == "preload").take([0])
    with pytest.raises(RamifyError, match=f"damaged.*column {column} "):
        Store.open(copy, verify=True)
    before = files_of(copy)
    with pytest.raises(RamifyError, match=f"damaged.*column {column} "):
        convert_store(copy, "mapped" if form == "adios" else "adios")
    assert files_of(copy) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", f"{column}.npy"]


@pytest.mark.parametrize("cut", [1, 50])
@pytest.mark.parametrize("name", ["data.0", "md.0", "mmd.0", "md.idx"])
def test_a_truncated_adios_file(converted: Path, tmp_path: Path, name: str, cut: int) -> None:
    copy = Path(shutil.copytree(converted, tmp_path / "copy"))
    part = copy / "columns.bp" / name
    part.write_bytes(part.read_bytes()[:-cut])
    with pytest.raises(RamifyError, match="damaged"):
        Store.open(copy)


@pytest.mark.parametrize("name", ["data.0", "md.0", "md.idx", ""])
def test_a_missing_adios_file(converted: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(converted, tmp_path / "copy"))
    gone = copy / "columns.bp" / name
    gone.unlink() if name else shutil.rmtree(gone)
    with pytest.raises(RamifyError, match="damaged"):
        Store.open(copy)


def test_what_cannot_be_converted(mapped: Path, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(RamifyError, match="already has the form `mapped`"):
        convert_store(mapped, "mapped", tmp_path / "x")
    with pytest.raises(RamifyError, match="exists already; nothing is overwritten"):
        convert_store(mapped, "adios", tmp_path)
    with pytest.raises(RamifyError, match="no store here"):
        convert_store(tmp_path, "adios")
    both = Path(shutil.copytree(mapped, tmp_path / "both"))
    shutil.copytree(converted / "columns.bp", both / "columns.bp")
    with pytest.raises(RamifyError, match="holds its columns twice"):
        Store.open(both)


def test_a_store_without_checksums_of_blocks(mapped: Path, tmp_path: Path) -> None:
    """As stores were written first: mapped it opens, in parts it cannot be checked, and converting adds them."""
    copy = Path(shutil.copytree(mapped, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["blocks"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert_equal(Store.open(copy).take(range(9)), Store.open(mapped).take(range(9)))
    with pytest.raises(RamifyError, match=r"no checksums of blocks.*\n  fix: prepare the dataset again"):
        Store.open(copy, preload=True)
    convert_store(copy, "adios")
    assert Store.open(copy).manifest == Store.open(mapped).manifest


def test_without_adios2(mapped: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adios2", None)
    for attempt in (lambda: Store.open(converted), lambda: convert_store(mapped, "adios", tmp_path / "x")):
        with pytest.raises(RamifyError, match=r"needs the package adios2.*\n  fix: pip install 'ramify\[scale\]'"):
            attempt()
    assert not list(tmp_path.iterdir())


def test_sums_do_not_depend_on_the_pieces() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 255, (2 * BLOCK_ROWS + 17, 3), np.uint8)
    expected = [block_sum(rows[s : s + BLOCK_ROWS]) for s in (0, BLOCK_ROWS, 2 * BLOCK_ROWS)]
    for cuts in ([], [1], [BLOCK_ROWS], [5, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 16]):
        sums = BlockSums()
        for piece in np.split(rows, cuts):
            sums.add(piece)
        assert sums.finish() == expected
    assert BlockSums().finish() == []


def test_touched_blocks_of_long_structures() -> None:
    first, counts = np.array([5, 10 * BLOCK_ROWS - 1]), np.array([3 * BLOCK_ROWS, 1])
    assert touched_blocks(first, counts).tolist() == [0, 1, 2, 3, 9]
