"""Rows whose columns have names of their own: which column, or columns, a field is read from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexora.data.sources import Row

#: For a field its column, or several to be put together.
Columns = Mapping[str, str | list[str]]
#: The fields that a new row is asked for.
ANSWERS = ("answer", "response")


def pick(row: Row, field: str, columns: Columns) -> Any:
    """A field of a row: its column, or the texts of several, with empty lines between them; of ``choices`` their list.

    Raises:
        ValueError: If its column is missing, with the names of those that are there, or holds nothing; if one of
            several holds something else than text; or if a choice is missing before others, whose letters and numbers
            would then be wrong.
    """
    names = columns.get(field, field)
    first, *more = [names] if isinstance(names, str) else names
    if first not in row:
        raise ValueError(f"column {first} is missing among {', '.join(row)}; map it with data.columns.{field}")
    if row[first] is None:
        raise ValueError(f"column {first} holds nothing")
    if isinstance(names, str):
        return row[first]
    texts = [row[first], *(row.get(name) for name in more)]  # files leave out what is empty
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str | None):
            raise ValueError(f"column {name} is {text!r}, not text")
    kept = [text for text in texts if text and text.strip()]
    if field != "choices":
        return "\n\n".join(kept)
    if kept != texts[: len(kept)]:
        raise ValueError(f"the choices of columns {', '.join(names)} have a gap")
    return kept


def renamed(row: Row, columns: Columns) -> Row:
    """The new row with the fields' names for the mapped columns that it has; that of its answer may be there, empty."""
    asked = {field: names for field, names in columns.items() if field not in ANSWERS}
    mapped = {field for field, names in asked.items() if (names if isinstance(names, str) else names[0]) in row}
    return {**row, **{field: pick(row, field, columns) for field in mapped}}
