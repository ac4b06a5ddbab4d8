"""What cached rows depend on beside their source: the code that made them, and what came out."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset


def code_fingerprint(*parts: Callable[..., Any] | type) -> str:
    """Hash of the files in which functions and classes are defined.

    ``datasets`` knows an importable function by its name alone, so that without this its cache would outlive a change
    of the code.
    """
    files = sorted({file for part in parts if (file := _file_of(part)) is not None})
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _file_of(part: Callable[..., Any] | type) -> Path | None:
    part = part.func if isinstance(part, partial) else part
    try:
        name = inspect.getsourcefile(part)
    except TypeError:  # built in, or typed at a prompt
        return None
    return Path(name) if name and Path(name).is_file() else None


def rows_fingerprint(*sets: Dataset) -> str:
    """Hash of the tokens, borders and answers of encoded rows in their order, wherever they came from."""
    digest = hashlib.sha256()
    for rows in sets:
        digest.update(f"{len(rows)} rows".encode())
        for row in rows.select_columns(["sequences", "starts", "answer"]):
            digest.update(repr((row["sequences"], row["starts"], row["answer"])).encode())
    return digest.hexdigest()[:16]
