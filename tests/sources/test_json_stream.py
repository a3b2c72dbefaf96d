"""The JSON stream gives the results of a parser of whole files, with any size of blocks."""

import bz2
import gzip
import json
import lzma
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramify.errors import RamifyError
from ramify.sources.parsing import json_stream

NASTY = st.text(alphabet='{}[]",:\\ aé\n', max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | NASTY
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3))
OBJECTS = st.dictionaries(NASTY, VALUES, max_size=4)


def stream(text: str, block: int) -> list[tuple[str, int | None, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.json"
        path.write_text(text, encoding="utf-8")
        before, json_stream.BLOCK = json_stream.BLOCK, block
        try:
            return [(item.key, item.index, item.value) for item in json_stream.items(path)]
        finally:
            json_stream.BLOCK = before


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NASTY, OBJECTS, max_size=5), st.integers(1, 60), st.sampled_from([None, 1]), st.booleans())
def test_object_of_objects(data: dict[str, Any], block: int, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    assert stream(text, block) == [(key, None, value) for key, value in data.items()]


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NASTY, st.lists(OBJECTS, max_size=3) | SCALARS, max_size=4), st.integers(1, 60))
def test_object_of_arrays_and_scalars(data: dict[str, Any], block: int) -> None:
    expected = [(k, i, v) for k, values in data.items() if isinstance(values, list) for i, v in enumerate(values)]
    assert stream(json.dumps(data), block) == expected


@settings(max_examples=80, deadline=None)
@given(st.lists(OBJECTS, max_size=5), st.integers(1, 60), st.sampled_from([None, 2]))
def test_array_of_objects(data: list[Any], block: int, indent: int | None) -> None:
    assert stream(json.dumps(data, indent=indent), block) == [("", i, value) for i, value in enumerate(data)]


def test_bare_nan_and_infinity_are_read() -> None:
    ((key, _, value),) = stream('{"a": {"x": NaN, "y": [-Infinity, 1.5], "NaN": "NaN"}}', 7)
    assert key == "a"
    assert value["x"] != value["x"]
    assert value["y"] == [float("-inf"), 1.5]
    assert value["NaN"] == "NaN"


@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress, lzma.compress])
def test_compressed_files_and_their_truncation(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    data = {f"m{i}": {"x": [i, i * 0.5]} for i in range(500)}
    path = tmp_path / "file"
    path.write_bytes(pack(json.dumps(data).encode()))
    assert {item.key: item.value for item in json_stream.items(path)} == data
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RamifyError, match=r"truncated|cannot be read"):
        list(json_stream.items(path))


@pytest.mark.parametrize("data", [{"a": {"x": 1}, "b": {"y": "}"}}, {"entries": [{"x": 1}, {"y": "]"}]}, [{"x": 1}]])
def test_every_truncation_is_noticed(data: Any) -> None:
    text = json.dumps(data)
    assert stream(text, 5)
    for length in range(len(text)):
        with pytest.raises(RamifyError):
            stream(text[:length], 5)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "",
        '{"a": [[{"x": 1}]]}',
        '{"a": {"x": 1}, {"y": 2}}',
        '{"a": {"x": 1}}\n{"b": {"x": 1}}',
        '{"a": {x}}',
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(RamifyError):
        stream(text, 16)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    member = json.dumps({"sites": [[0.123456] * 3] * 400})
    with path.open("w") as file:
        file.write("{" + ",".join(f'"m{i}": {member}' for i in range(1200)) + "}")
    size = path.stat().st_size
    assert size > 15e6
    tracemalloc.start()
    try:
        assert sum(len(item.value["sites"]) for item in json_stream.items(path)) == 480_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6, f"{peak} bytes for a file of {size}"
