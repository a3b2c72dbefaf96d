"""The text of a recipe as plain data: YAML, and `key.sub=value` pairs that change it."""

from collections.abc import Hashable
from typing import Any

import yaml

from ramify.errors import RamifyError


class _Loader(yaml.SafeLoader):
    """YAML as it is meant: a key that stands twice in one group is an error instead of one that silently wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


NODES = 100_000
"""Of a text at most, every alias counted as what it stands for: with nine aliases of nine aliases each, and so on, a
few lines stand for billions."""
DEPTH = 50
"""Of groups within groups, at most."""


def read_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is not YAML, a key stands twice in one group, or it stands for too much.
    """
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            return None
        _size(node, {}, 0)
        return _Loader("").construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("its groups are nested too deeply") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # of a date or a number that there is not
        raise yaml.YAMLError(f"a value is not what it seems to be: {error}") from None


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many nodes `node` stands for, aliases counted as what they stand for.

    Raises:
        yaml.YAMLError: more than `NODES`, more than `DEPTH` deep, or without end.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if depth > DEPTH:
        raise yaml.YAMLError(f"its groups are nested more than {DEPTH} deep{node.start_mark}")
    if id(node) not in known:
        known[id(node)] = NODES  # an alias inside itself stands for too much
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_size(part, known, depth + 1) for part in parts)
    if known[id(node)] >= NODES:
        raise yaml.YAMLError(f"its aliases stand for more than {NODES:,} values{node.start_mark}")
    return known[id(node)]


def override(content: dict[str, Any], text: str) -> None:
    """Sets one dotted key of plain data in place.

    Args:
        content: a recipe as plain data.
        text: `key.sub=value`; the value is YAML.

    Raises:
        RamifyError: not of that form, or the key lies inside something that is no group.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RamifyError(f"'{text}' is not an override", fix="write key.sub=value, e.g. train.max_steps=20")
    *parents, last = key.split(".")
    for parent in parents:
        inner = content.get(parent, {})
        if not isinstance(inner, dict):
            raise RamifyError(f"'{text}': '{parent}' holds {inner!r}, not a group of keys")
        content[parent] = dict(inner)  # a copy: a YAML alias may stand for the same group elsewhere
        content = content[parent]
    try:
        content[last] = read_yaml(value)
    except yaml.YAMLError as error:
        raise RamifyError(f"'{text}': the value is not YAML: {error}") from None
