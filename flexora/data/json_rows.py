"""Rows in files of JSON: one a line, where one that cannot be read spoils no other, or the items of an array."""

from __future__ import annotations

import hashlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError

from flexora.data.fingerprint import code_fingerprint
from flexora.errors import FlexoraError, first_line

#: Columns of a JSON-lines file: its lines as they are, so that one that cannot be read spoils no other. The items of a
#: JSON array are written as lines, but counted as items.
LINE, ITEM, TEXT = "__line__", "__item__", "__text__"


def load_lines(file: Path, option: str = "data.source") -> Dataset:
    """Load the lines of a JSON-lines file, or the items of a JSON array, as they are and with their numbers.

    :func:`as_row` reads one. ``datasets`` would make them columns of one type each: a field that is a number here and
    text there fails the whole file, and names no line.

    Args:
        file: The file.
        option: The option that names it, for messages.

    Raises:
        FlexoraError: If the file cannot be read or holds no row.
    """
    try:
        array = is_array(file)
        with file.open("rb") as lines:
            start = next((line.strip() for line in lines if line.strip()), b"")
            beginning = re.sub(rb"\s", b"", b"".join([start, *islice(lines, 8)])).removeprefix(BOM_UTF8)
            if not start or (array and beginning == b"[]"):
                raise FlexoraError(f"{option}: {file} holds no row; add rows or name another file")
            lines.seek(0)
            arguments = {"file": str(file), "content": hashlib.file_digest(lines, "sha256").hexdigest()}
    except OSError as error:
        raise FlexoraError(f"{option}: cannot read {file}: {error}; name another file") from error
    rows, number = (_array, ITEM) if array else (_lines, LINE)
    arguments["code"] = code_fingerprint(rows)
    try:
        return generated(rows, arguments, features=Features({number: Value("int64"), TEXT: Value("binary")}))
    except DatasetGenerationError as error:
        reason = first_line(error.__cause__ or error)
        raise FlexoraError(f"{option}: {file} is no JSON array: {reason}; mend it") from error


def is_array(file: Path) -> bool:
    """Whether a file is a JSON array, not lines of JSON; both may be called ``.json``.

    Raises:
        OSError: If it cannot be read.
    """
    if file.suffix != ".json":
        return False
    with file.open("rb") as text:
        start = text.read(len(BOM_UTF8)).removeprefix(BOM_UTF8)
        while not start.strip() and (more := text.read(4096)):
            start = more
    return start.lstrip().startswith(b"[")


def numbers(raw: Dataset) -> Sequence[int]:
    """The number of each row in its file; in what was loaded, where files do not count them."""
    found: Sequence[int] = next(
        (raw[name] for name in (LINE, ITEM) if name in raw.column_names), range(1, len(raw) + 1)
    )
    return found


def as_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row itself, or what a line of a JSON-lines file, or an item of an array, says.

    Raises:
        ValueError: If it is not a JSON object.
    """
    if TEXT not in row:
        return row
    try:
        parsed = json.loads(bytes(row[TEXT]))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed


def generated(rows: Callable[..., Iterator[dict[str, Any]]], arguments: dict[str, Any], **options: Any) -> Dataset:
    """Rows of a generator, cached under its arguments."""
    dataset = Dataset.from_generator(rows, gen_kwargs=arguments, **options)
    assert isinstance(dataset, Dataset)
    return dataset


def _lines(file: str, content: str, code: str) -> Iterator[dict[str, Any]]:
    """Yield every line that is not blank; ``content`` and ``code`` are there for the cache's key alone."""
    with Path(file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield {LINE: number, TEXT: line}


def _array(file: str, content: str, code: str) -> Iterator[dict[str, Any]]:
    """Yield every item, as a line of its own would say it; the other arguments are there for the cache's key alone."""
    for number, item in enumerate(json.loads(Path(file).read_bytes()), start=1):
        yield {ITEM: number, TEXT: json.dumps(item).encode()}
