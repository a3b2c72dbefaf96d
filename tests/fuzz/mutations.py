"""Damage to files: to their bytes, and to their content."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

MORE = int(os.environ.get("RAMIFY_FUZZ", "1"))
"""Times as many files as in the suite."""

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 119, 10**6, 2**31, 2**63, 10**30, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "../../outside", "/tmp/outside", "a/b", "\0", "x" * 300, "Xx", "1e5", "\ud800",
    [], {}, [[]], [0], [[1, 2, 3]], {"a": {}}, {"../a": 1},
)  # fmt: skip
"""What may stand where something else is expected."""
OTHERS = ("leave", "rename", "copy")
"""What else may happen to a value."""


def fuzz(files: int) -> Callable[[Any], Any]:
    """How many files a test tries; in the suite the same ones each time, so that it fails for its changes alone."""
    return settings(
        max_examples=files * MORE,
        deadline=None,
        derandomize=MORE == 1,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside plain data."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield (*path, key)
            yield from places(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content[:5]):
            yield (*path, index)
            yield from places(value, (*path, index))


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Functions that change plain data in one to three places: another value, one left out, renamed or copied."""
    steps = draw(
        st.lists(
            st.tuples(
                st.floats(0, 1), st.sampled_from(("put", "put", "put", "leave", "rename", "copy")), st.sampled_from(ODD)
            ),
            min_size=1,
            max_size=3,
        )
    )

    def change(content: Any) -> Any:
        content = copy.deepcopy(content)
        for where, how, value in steps:
            there = list(places(content))
            if not there:
                return content
            *parents, last = there[int(where * (len(there) - 1))]
            group = content
            for key in parents:
                group = group[key]
            if how == "put":
                group[last] = copy.deepcopy(value)
            elif how == "leave":
                del group[last]
            elif how == "rename" and isinstance(group, dict):
                group[str(value)] = group.pop(last)
            else:
                group[last] = copy.deepcopy(content)
        return content

    return change


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Functions that damage bytes in one to four places: other bits, cut, repeated, other bytes put in."""
    steps = draw(
        st.lists(
            st.tuples(
                st.floats(0, 1),
                st.sampled_from(("flip", "flip", "cut", "end", "repeat", "put")),
                st.integers(0, 7),
                st.binary(min_size=1, max_size=8),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def damage(data: bytes) -> bytes:
        for where, how, number, put in steps:
            at = int(where * max(len(data) - 1, 0))
            if how == "flip" and data:
                data = data[:at] + bytes([data[at] ^ (1 << number)]) + data[at + 1 :]
            elif how == "cut":
                data = data[:at] + data[at + 1 + number * 3 :]
            elif how == "end":
                data = data[:at]
            elif how == "repeat":
                data = data[:at] + data[max(0, at - 40) : at] * number + data[at:]
            else:
                data = data[:at] + put + data[at:]
        return data

    return damage


def as_json(content: Any) -> bytes:
    """JSON, also with numbers outside its standard: readers must accept or refuse them."""
    return json.dumps(content).encode()
