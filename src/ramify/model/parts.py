"""Names of the parts of a model: `encoder` and `branches.NAME`, as used for tensors and files.

The tensor `branches.mptrj.energy.linear.weight` of a `MultiBranch` belongs to the part `branches.mptrj`, where its name
is `energy.linear.weight`; the file of the part is `branches/mptrj.safetensors`.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # names of parts are read without PyTorch, which takes seconds to load
    from torch import Tensor

ENCODER = "encoder"
"""The part that every model has; the others are branches."""

_BRANCHES = "branches."
T = TypeVar("T")


def part_of_branch(branch: str) -> str:
    """`branches.NAME`."""
    return _BRANCHES + branch


def branch_of_part(part: str) -> str | None:
    """The branch, `NAME` of `branches.NAME`; None for the encoder."""
    return part.removeprefix(_BRANCHES) if part.startswith(_BRANCHES) else None


def split_name(name: str) -> tuple[str, str]:
    """The part of a tensor, and its name within that part."""
    if not name.startswith(_BRANCHES):
        part, _, rest = name.partition(".")
        return part, rest
    branch, _, rest = name.removeprefix(_BRANCHES).partition(".")
    return part_of_branch(branch), rest


def part_of(name: str) -> str:
    """The part of a tensor."""
    return split_name(name)[0]


def branch_of(name: str) -> str | None:
    """The branch of a tensor; None for the encoder."""
    return branch_of_part(part_of(name))


def file_of_part(part: str) -> str:
    """The file of a part in a checkpoint or an export, with `/` between folder and file."""
    return f"{part.replace('.', '/', 1)}.safetensors"


def branch_of_file(name: str) -> str | None:
    """The branch of a weight file in a checkpoint or an export; None for files of no branch."""
    folder, _, rest = name.partition("/")
    return rest.removesuffix(".safetensors") if folder == "branches" else None


def parts_of(branches: Collection[str]) -> tuple[str, ...]:
    """The names of the encoder and of the parts of branches."""
    return (ENCODER, *map(part_of_branch, branches))


def by_part(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """Tensors by part, under their names within the parts."""
    found: dict[str, dict[str, T]] = {}
    for name, tensor in tensors.items():
        part, rest = split_name(name)
        found.setdefault(part, {})[rest] = tensor
    return found


def whole_names(part: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors of a part under their names in a `MultiBranch`."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def of_branches(tensors: Mapping[str, T], branches: Collection[str]) -> dict[str, T]:
    """The tensors of the given branches, without the encoder."""
    return {name: tensor for name, tensor in tensors.items() if branch_of(name) in branches}


def checksum(tensors: Mapping[str, "Tensor"]) -> str:
    """SHA-256 of tensors and their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def checksums_of_parts(tensors: Mapping[str, "Tensor"]) -> dict[str, str]:
    """The checksum of each part, from tensors under their names in a `MultiBranch`."""
    return {part: checksum(own) for part, own in by_part(tensors).items()}
