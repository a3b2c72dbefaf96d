"""Safetensors files whose header describes their tensors in JSON, with a format version: routers, error bars."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ramify.errors import RamifyError
from ramify.files import parse_json
from ramify.untrusted import check_version, regular_file

Tensors = Mapping[str, NDArray[Any]]


def described(tensors: Tensors, key: str, about: Mapping[str, Any]) -> bytes:
    """The bytes of a file with the description `about` under `key` of its header."""
    return save(
        {name: np.ascontiguousarray(t) for name, t in tensors.items()}, {key: json.dumps(about, allow_nan=False)}
    )


def read_described(path: Path, key: str, version: int, fix: str) -> tuple[Any, dict[str, NDArray[Any]]]:
    """The description and the tensors of a file; neither is validated beyond its version.

    Args:
        path: a regular file.
        key: of the header.
        version: latest version that the caller reads.
        fix: how to replace a damaged file.

    Raises:
        RamifyError: the file is missing, a link, damaged, of another kind, or of a newer version.
    """
    file = regular_file(path.parent, path.name, fix=fix)
    try:
        with safe_open(file, "numpy") as opened:
            content = parse_json(opened.metadata()[key].encode())
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RamifyError(f"{path} holds no {key}, or is damaged: {error}", fix=fix) from None
    check_version(content, version, path, fix)
    return content, tensors
