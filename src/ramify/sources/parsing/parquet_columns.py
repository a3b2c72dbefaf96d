"""Parquet files, batch by batch, with nested lists of numbers as arrays."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ramify.errors import RamifyError

BATCH_ROWS = 1000
"""Rows at a time: some megabytes, as structures have some ten to hundred atoms."""


def column_types(path: Path) -> dict[str, str]:
    """Names and types of the columns.

    Raises:
        RamifyError: no such file, not of Parquet, damaged, or pyarrow is not installed.
    """
    with _opened(path) as file:
        return {field.name: str(field.type) for field in file.schema_arrow}


def rows(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the values of each row by name. Lists of numbers are arrays, lists of lists of equal length (r, c) arrays
    with NaN for null; ragged ones stay lists.

    Raises:
        RamifyError: as `column_types`.
    """
    pyarrow = _pyarrow(path)
    with _opened(path) as file:
        try:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(names), use_threads=False):
                columns = {name: _values(batch.column(name)) for name in names}
                for row in range(batch.num_rows):
                    yield {name: column[row] for name, column in columns.items()}
        except (pyarrow.ArrowException, OSError) as error:
            raise _damaged(path, error) from error


def _values(column: Any) -> list[Any]:
    """The value of each row of a column."""
    import pyarrow.types as kinds

    if not kinds.is_list(column.type) and not kinds.is_large_list(column.type):
        return list(column.to_pylist())
    ends, inner = column.offsets.to_numpy(), column.values
    if kinds.is_list(inner.type) or kinds.is_large_list(inner.type):
        if not _is_number(inner.type.value_type):
            return list(column.to_pylist())
        flat, inner_ends = inner.values.to_numpy(zero_copy_only=False), inner.offsets.to_numpy()
        found: list[Any] = [_table(flat, inner_ends[a : b + 1]) for a, b in pairwise(ends)]
    elif _is_number(inner.type):
        flat = inner.to_numpy(zero_copy_only=False)
        found = [flat[a:b] for a, b in pairwise(ends)]
    else:
        return list(column.to_pylist())
    if column.null_count:
        present = column.is_valid().to_numpy(zero_copy_only=False)
        found = [value if there else None for value, there in zip(found, present, strict=True)]
    return found


def _is_number(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind))


def _table(flat: Any, ends: Any) -> Any:
    """The lists between `ends` as the rows of an array, or as lists if their lengths differ."""
    widths = np.diff(ends)
    if len(widths) and (widths == widths[0]).all():
        return flat[ends[0] : ends[-1]].reshape(len(widths), -1)
    return [flat[a:b].tolist() for a, b in pairwise(ends)]


def _opened(path: Path) -> Any:
    pyarrow = _pyarrow(path)
    try:
        # with pre_buffer, or without a buffer size, a column of a group of rows is read as a whole
        return pyarrow.parquet.ParquetFile(str(path), pre_buffer=False, buffer_size=1 << 20)
    except FileNotFoundError as error:
        raise RamifyError(f"{path} does not exist", fix="correct `path`") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RamifyError(f"{path} needs the package pyarrow", fix="pip install 'ramify[formats]'") from error
    return pyarrow


def _damaged(path: Path, error: Exception) -> RamifyError:
    return RamifyError(
        f"{path} cannot be read as Parquet: {error}",
        fix="correct `path` or `format`, or compare its checksum and download it again",
    )
