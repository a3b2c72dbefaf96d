"""The text of a recipe as plain data: YAML, and `key.sub=value` pairs that change it."""

from collections.abc import Hashable
from typing import Any

import yaml

from ramify.errors import RamifyError


class _Loader(yaml.SafeLoader):
    """YAML as it is meant: a key that stands twice in one group is an error instead of one that silently wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is not YAML, or a key stands twice in one group.
    """
    return yaml.load(text, _Loader)


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
