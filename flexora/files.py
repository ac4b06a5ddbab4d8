"""Whole files or none: every result is written beside its place, synced, and renamed into it."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write ``content`` so that a reader sees the old file or the new one, never a part.

    The temporary file lies in the target's own folder: a rename across file systems would not be atomic.

    Args:
        path: The file to create or replace. Its folder is created where missing.
        content: Text (written as UTF-8) or bytes.

    Returns:
        ``path``.

    Raises:
        OSError: If the folder cannot be written to or the disk is full; ``path`` is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 0600, too narrow for a result that others read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically. NaN and infinity raise ``ValueError``: they are not JSON."""
    return write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
