"""Validation of untrusted files: names that become paths, files inside a folder, content of a given type.

Stores, runs, checkpoints and exports are shared between users. Their content is validated here before use
(`SECURITY.md` defines the trust model).
"""

import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from ramify.elements import NUMBERS
from ramify.errors import RamifyError

NAME_BYTES = 200
"""Maximum length of a name: file systems allow 255 bytes, and temporary files add a prefix and suffix."""


def check_name(name: str) -> str:
    """Returns a valid name of a dataset or branch; names become folders, files and parameter names.

    Raises:
        ValueError: the name is not valid.
    """
    if not name or not name.replace("-", "").replace("_", "").isalnum() or name[0] == "-":
        raise ValueError(f"'{name:.80}' cannot be a name: use letters, digits, '-' and '_'")
    if len(name.encode(errors="surrogatepass")) > NAME_BYTES:
        raise ValueError(f"'{name:.80}...' cannot be a name: it has more than {NAME_BYTES} bytes")
    return name


def is_name(name: str) -> bool:
    """Returns whether `check_name` accepts the name."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def check_element(symbol: str) -> str:
    """Returns a valid element symbol.

    Raises:
        ValueError: not the symbol of an element.
    """
    if symbol not in NUMBERS:
        raise ValueError(f"'{symbol:.80}' is not an element")
    return symbol


Name = Annotated[str, AfterValidator(check_name)]
"""Name of a dataset or branch, as a pydantic type."""
Element = Annotated[str, AfterValidator(check_element)]
"""Symbol of an element, as a pydantic type."""


def regular_file(folder: Path, name: str, *, fix: str = "take another copy") -> Path:
    """Returns the path of the regular file `name` (with `/` between folders) inside `folder`.

    Links are rejected, for the file and for folders on its path, because they may point outside `folder`. `folder`
    itself is given by the user and may be a link.

    Raises:
        RamifyError: the file is missing or not a regular file.
    """
    path = folder
    for part in name.split("/"):
        if part in ("", ".", "..") or "\0" in part:
            raise RamifyError(f"{folder}: '{name:.80}' is not the name of a file inside this folder", fix=fix)
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError:
            raise RamifyError(f"{path} is missing", fix=fix) from None
        if stat.S_ISLNK(mode):
            raise RamifyError(
                f"{path} is a link; only regular files inside {folder} are read",
                fix="put the file itself in its place (cp -rL copies a folder with what its links point to)",
            )
    if not stat.S_ISREG(mode):
        raise RamifyError(f"{path} is not a regular file", fix=fix)
    return path


def has_file(folder: Path, name: str, *, fix: str = "take another copy") -> bool:
    """Returns whether `folder` has a regular file of this name.

    Raises:
        RamifyError: the name belongs to a link or to something other than a file; see `regular_file`.
    """
    path = folder / name
    return (path.exists() or path.is_symlink()) and bool(regular_file(folder, name, fix=fix))


T = TypeVar("T")


def check_version(content: Any, version: int, where: object, fix: str = "") -> None:
    """Refuses a file that a later version of the program wrote.

    Args:
        content: of the file; a number under `version` is its format version.
        version: the latest one that the caller reads.
        where: the file or its folder, for the message.
        fix: another one than the later version of the program.

    Raises:
        RamifyError: naming both versions.
    """
    found = content.get("version") if isinstance(content, dict) else None
    if isinstance(found, int) and found > version:
        raise RamifyError(
            f"{where} has format version {found}, this program reads up to {version}",
            fix=fix or "use the version of ramify that wrote it, or a newer one",
        )


def parsed(kind: type[T], content: Any, file: Path, *, at: str = "", fix: str = "take another copy") -> T:
    """Validates the content of a file against a type.

    Args:
        kind: a pydantic model, or any type that pydantic can validate.
        content: plain data.
        file: the file, for messages.
        at: prefix of the keys with a dot at its end; empty for the whole file.
        fix: how to correct a damaged file.

    Raises:
        RamifyError: not valid; the message states the file, the key and the value.
    """
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(content)
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = at + ".".join(str(part) for part in first["loc"]) or "its top"
        found = "" if first["type"] in ("extra_forbidden", "missing") else f", found {first['input']!r:.80}"
        raise RamifyError(f"{file} is damaged at '{key}': {first['msg']}{found}", fix=fix) from None
