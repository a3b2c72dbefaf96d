"""Parsing of YAML, and overrides by `key.sub=value` pairs."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import yaml

from ramify.errors import RamifyError


class _Loader(yaml.SafeLoader):
    """YAML loader that raises an error on duplicate keys in one group."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' occurs twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


NODES = 100_000
"""Maximum number of nodes of a text after expanding aliases: nested aliases can make a few lines expand to billions of
nodes."""
DEPTH = 50
"""Maximum depth of nested groups."""


def read_yaml(text: str) -> Any:
    """Parses YAML.

    Raises:
        yaml.YAMLError: not YAML, a duplicate key in one group, or more nodes than `NODES`.
    """
    try:
        node = yaml.compose(text, _Loader)
        if node is None:
            return None
        _size(node, {}, 0)
        return _Loader("").construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("its groups are nested too deeply") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # an invalid date or number
        raise yaml.YAMLError(f"a value is not valid: {error}") from None


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of nodes after expanding aliases.

    Raises:
        yaml.YAMLError: more nodes than `NODES`, deeper than `DEPTH`, or a recursive alias.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if depth > DEPTH:
        raise yaml.YAMLError(f"its groups are nested more than {DEPTH} deep{node.start_mark}")
    if id(node) not in known:
        known[id(node)] = NODES  # a recursive alias then exceeds the limit
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_size(part, known, depth + 1) for part in parts)
    if known[id(node)] >= NODES:
        raise yaml.YAMLError(f"its aliases expand to more than {NODES:,} values{node.start_mark}")
    return known[id(node)]


def override(content: dict[str, Any], text: str) -> None:
    """Sets one dotted key of plain data in place.

    Args:
        content: a recipe as plain data.
        text: `key.sub=value`; the value is YAML.

    Raises:
        RamifyError: not of that form, or a parent key is not a group.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RamifyError(f"'{text}' is not an override", fix="write key.sub=value, e.g. train.max_steps=20")
    try:
        assign(content, key, read_yaml(value))
    except yaml.YAMLError as error:
        raise RamifyError(f"'{text}': the value is not YAML: {error}") from None


def dotted(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of plain data by dotted key; an empty group is a value."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def assign(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets one dotted key of plain data in place.

    Raises:
        RamifyError: a parent of the key is not a group.
    """
    *parents, last = key.split(".")
    for parent in parents:
        inner = content.get(parent, {})
        if not isinstance(inner, dict):
            raise RamifyError(f"'{key}={value}': '{parent}' holds {inner!r}, not a group of keys")
        content[parent] = dict(inner)  # a copy: a YAML alias may share this group with another key
        content = content[parent]
    content[last] = value
