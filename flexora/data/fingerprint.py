"""What cached rows depend on beside their source: the code that made them, and what came out."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

#: Columns that decide what the model reads and what is scored.
SCORED = ("sequences", "starts", "unscored", "answer")


def code_fingerprint(*parts: Callable[..., Any] | type | Path) -> str:
    """Hash of files, and of those in which functions and classes are defined.

    ``datasets`` knows an importable function by its name alone, so that without this its cache would outlive a change
    of the code.
    """
    files = sorted({file for part in parts for file in _files_of(part)})
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _files_of(part: object) -> Iterator[Path]:
    """The file of a function or class; of a partial function also those of what it is given."""
    if isinstance(part, partial):
        for inner in (part.func, *part.args, *part.keywords.values()):
            yield from _files_of(inner)
    elif isinstance(part, Path):
        yield part
    elif callable(part):
        with suppress(TypeError):  # built in, or typed at a prompt
            file = Path(inspect.getsourcefile(part) or "")
            if file.is_file():
                yield file


def rows_fingerprint(*sets: Dataset) -> str:
    """Hash of the tokens, scored positions and answers of encoded rows in their order, wherever they came from."""
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(f"{len(rows)} rows".encode())
        for row in rows.select_columns(list(SCORED)):
            digest.update(repr([row[name] for name in SCORED]).encode())
    return digest.hexdigest()[:16]
