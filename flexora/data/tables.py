"""Rows in tables: parquet, whose columns have types, and CSV, whose cells are texts as they stand."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, load_dataset

from flexora.data.fingerprint import code_fingerprint
from flexora.data.json_rows import generated
from flexora.errors import FlexoraError, first_line
from flexora.files import sha256_of

#: Kinds of tables.
TABLES = (".parquet", ".csv")

#: Characters of a cell: what a C long holds everywhere.
_LONGEST_CELL = 2**31 - 1

_NOTHING: tuple[int, list[str]] = (0, [])


def load_table(files: Sequence[Path], option: str) -> Dataset:
    """Load the rows of a table, which may lie in several files of one kind.

    Args:
        files: The files.
        option: The option that names them, for messages.

    Raises:
        FlexoraError: If they cannot be read or hold no row.
    """
    shown = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
    try:
        if files[0].suffix == ".csv":
            dataset = _load_csv(files)
        else:
            dataset = load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    except Exception as error:  # one kind of error per reader and version
        cause = error.__cause__ or error
        advice = "name another file" if isinstance(cause, OSError) else "mend the file"
        raise FlexoraError(f"{option}: cannot read {shown}: {first_line(cause)}; {advice}") from error
    if len(dataset) == 0:
        raise FlexoraError(f"{option}: {shown} holds no row; add rows or name another file")
    return dataset


def _load_csv(files: Sequence[Path]) -> Dataset:
    """Texts alone: pandas, which ``datasets`` reads CSV with, makes numbers of some and nothing of the word "None"."""
    if not any(list(islice(_cells(file), 1, 2)) for file in files):
        return Dataset.from_dict({})
    arguments = {"files": [str(file) for file in files], "content": [sha256_of(file) for file in files]}
    _, names = next(_cells(files[0]), _NOTHING)
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"two columns are called {twice[0]!r}")
    features = Features({name: Value("string") for name in names})
    return generated(_csv_rows, {**arguments, "code": code_fingerprint(_csv_rows)}, features=features)


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that has some, its header first, with the number of its last line."""
    csv.field_size_limit(_LONGEST_CELL)  # of the process; by default a document of 131,072 characters is too long
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.reader(text, strict=True)
        yield from ((reader.line_num, cells) for cells in reader if cells)


def _csv_rows(files: list[str], content: list[str], code: str) -> Iterator[dict[str, Any]]:
    """Yield every row; an empty cell holds nothing. ``content`` and ``code`` are there for the cache's key alone."""
    for file in files:
        rows = _cells(Path(file))
        _, names = next(rows, _NOTHING)
        for line, cells in rows:
            if len(cells) != len(names):
                raise ValueError(f"line {line} has {len(cells)} cells, the header {len(names)}")
            yield {name: cell or None for name, cell in zip(names, cells, strict=True)}
