"""Rows whose columns have names of their own: which column, or columns, a field is read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexora.data.sources import Row

#: For a field its column, or several to be joined.
Columns = Mapping[str, str | list[str]]


def pick(row: Row, field: str, columns: Columns) -> Any:
    """A field of a row.

    Raises:
        ValueError: If its column is missing, with the names of those that are there, or holds nothing.
    """
    names = columns.get(field, field)
    first, *more = [names] if isinstance(names, str) else names
    for name in (first, *more):
        if name not in row:
            raise ValueError(f"column {name} is missing among {', '.join(row)}; map it with data.columns.{field}")
    if row[first] is None:
        raise ValueError(f"column {first} holds nothing")
    return "\n\n".join([row[first], *(row[name] for name in more if row[name])]) if more else row[first]


def renamed(row: Row, columns: Columns) -> Row:
    """The row with the fields' names for the mapped columns that it has."""
    mapped = {field for field, names in columns.items() if (names if isinstance(names, str) else names[0]) in row}
    return {**row, **{field: pick(row, field, columns) for field in mapped}}
