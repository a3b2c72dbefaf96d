"""What a file from disk may say: names that become paths, files inside a folder, content of a stated type.

Stores, runs, checkpoints and exports are given to others and come from others. Whatever such a folder says is compared
here before it is used (`SECURITY.md` says what is trusted).
"""

import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from ramify.elements import NUMBERS
from ramify.errors import RamifyError

NAME_BYTES = 200
"""Of a name at most: file systems take 255 bytes, and temporary files carry the name and more."""


def check_name(name: str) -> str:
    """The name, if it can be that of a dataset or branch: names become folders, files and parameter names.

    Raises:
        ValueError: it cannot.
    """
    if not name or not name.replace("-", "").replace("_", "").isalnum() or name[0] == "-":
        raise ValueError(f"'{name:.80}' cannot be a name: use letters, digits, '-' and '_'")
    if len(name.encode(errors="surrogatepass")) > NAME_BYTES:
        raise ValueError(f"'{name:.80}...' cannot be a name: it has more than {NAME_BYTES} bytes")
    return name


def is_name(name: str) -> bool:
    """Whether `check_name` takes it."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def check_element(symbol: str) -> str:
    """The symbol, if it is that of an element.

    Raises:
        ValueError: it is not.
    """
    if symbol not in NUMBERS:
        raise ValueError(f"'{symbol:.80}' is not an element")
    return symbol


Name = Annotated[str, AfterValidator(check_name)]
"""The name of a dataset or branch, for models of files."""
Element = Annotated[str, AfterValidator(check_element)]
"""The symbol of an element, for models of files."""


def regular_file(folder: Path, name: str, *, fix: str = "take another copy") -> Path:
    """The file `name` (with `/` between folders) inside `folder`. Neither it nor a folder on the way is a link: what a
    folder of others links to lies outside of it. `folder` itself, which the user has named, may be one.

    Raises:
        RamifyError: it is not there, or it is not a regular file.
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
    """Whether `folder` has a file of this name.

    Raises:
        RamifyError: something else has this name, or a link; see `regular_file`.
    """
    path = folder / name
    return (path.exists() or path.is_symlink()) and bool(regular_file(folder, name, fix=fix))


T = TypeVar("T")


def parsed(kind: type[T], content: Any, file: Path, *, at: str = "", fix: str = "take another copy") -> T:
    """The content of a file as the type it should have.

    Args:
        kind: a pydantic model, or any type that pydantic can validate.
        content: plain data.
        file: where they stood.
        at: under which key, with a dot at its end; empty for the whole file.
        fix: what to do about a file that is not right.

    Raises:
        RamifyError: naming the file, the key and the value.
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
