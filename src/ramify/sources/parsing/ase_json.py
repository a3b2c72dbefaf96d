"""ASE's database in JSON, row by row: ASE parses it as a whole, with several times its size in memory.

The file is one object with a member for each row, named by its id, and `metadata`, `ids` and `nextid` after them
(`ase/db/jsondb.py`). ASE decodes each row here, so that the values are those that ASE reads.
"""

from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from ase.db.row import AtomsRow
from ase.io.jsonio import decode

from ramify.sources.chunks import MALFORMED_STRUCTURE
from ramify.sources.parsing.json_stream import BLOCK, Text, texts
from ramify.sources.quarantine import Quarantine


def json_rows(path: Path, quarantine: Quarantine) -> Iterator[Any]:
    """Yields the rows; those that cannot be decoded are added to the quarantine.

    Raises:
        ValueError: invalid JSON, or no rows.
    """
    last = -1
    for text in _members(path):
        if not text.key.isdecimal():
            continue
        index = int(text.key)
        try:
            row = AtomsRow(decode(text.text.decode()))
        except JSONDecodeError as error:
            raise ValueError(f"row {index}: {error}") from error
        except Exception as error:  # ASE may raise any exception on values of another form
            quarantine.add(f"{path.name}[{index}]", MALFORMED_STRUCTURE, f"{type(error).__name__}: {error}")
        else:
            row.id = index
            if index > last:
                yield row
            else:
                quarantine.add(f"{path.name}[{index}]", MALFORMED_STRUCTURE, f"id {index} after id {last}")
        last = max(last, index)
    if last < 0:
        raise ValueError("it has no rows named by their ids")


def json_metadata(path: Path) -> dict[str, Any]:
    """The metadata, which follow the rows; empty if there are none.

    Raises:
        ValueError: invalid JSON.
    """
    found = [decode(text.text.decode()) for text in _members(path) if text.key == "metadata"]
    return found[-1] if found and isinstance(found[-1], dict) else {}


def _members(path: Path) -> Iterator[Text]:
    """Yields the members of the outermost object that are objects."""
    for part in texts(path, BLOCK):
        yield from (text for text in part if text.index is None)
