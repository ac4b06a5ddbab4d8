"""Whole files or none: every result is written beside its place, synced, and renamed into it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from flexora.errors import FlexoraError

#: Bytes of a sample, and samples of a file.
SAMPLE, SAMPLES = 1 << 16, 5


class HashedFile:
    """A file that is written from its beginning to its end, with the hash of what went into it.

    An error of the disk is kept until the writer is done: it may be a library that makes another one of it.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write on."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        self._sha256.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: the whole file is synced at its end."""

    def hexdigest(self) -> str:
        """Hash of all that was written.

        Raises:
            OSError: If that failed.
        """
        if self._error is not None:
            raise self._error
        return self._sha256.hexdigest()


def write_hashed(path: Path, fill: Callable[[IO[bytes]], object]) -> str:
    """Have a file written piece by piece, as :func:`write_atomically` does it with one that is in memory.

    Returns:
        The hash of its bytes, as hexadecimal digits.

    Raises:
        FlexoraError: If the folder cannot be written to or the disk is full; ``path`` is then untouched.
    """
    with _told(path), _replacement(path) as file:
        hashed = HashedFile(file)
        fill(cast("IO[bytes]", hashed))
        return hashed.hexdigest()


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write ``content`` so that a reader sees the old file or the new one, never a part.

    The temporary file lies in the target's own folder: a rename across file systems would not be atomic.

    Args:
        path: The file to create or replace. Its folder is created where missing.
        content: Text (written as UTF-8) or bytes.

    Returns:
        ``path``.

    Raises:
        FlexoraError: If the folder cannot be written to or the disk is full; ``path`` is then untouched.
    """
    with _told(path), _replacement(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, where a reader may find its last line cut short.

    Raises:
        FlexoraError: If the file cannot be written to or the disk is full.
    """
    with _told(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in one line why a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise FlexoraError(f"cannot write {path}: {error.strerror}; make room or choose another place") from error


@contextmanager
def _replacement(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of ``path`` when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp gives 0600, too narrow for a result that others read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have the names in a folder outlive a loss of power: syncing a file keeps its content alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``path`` when the block ends; if the block fails, nothing is changed.

    Args:
        path: Where the folder will be.
        replace: Whether it may take the place of one that is there.

    Raises:
        FlexoraError: If ``path`` exists and may not be replaced, its folder cannot be written to, or the disk is full.
    """
    if path.exists() and not replace:
        raise FlexoraError(f"{path} exists already; choose another place, or delete it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            made = Path(scratch) / path.name
            made.mkdir()
            yield made
            for file in filter(Path.is_file, made.rglob("*")):
                file.chmod(0o644)  # safetensors gives 0600
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            _swap(made, path, Path(scratch) / "old")
            _sync(path.parent)
    except OSError as error:
        raise FlexoraError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another place"
        ) from error


def _swap(made: Path, path: Path, old: Path) -> None:
    """Put a folder in the place of another, which comes back if that fails."""
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(made, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise


def sha256_of(file: Path) -> str:
    """Hash of a file's bytes, as hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sampled_sha256(files: Iterable[Path]) -> str:
    """Hash of the names, the sizes and some bytes of files that are too large to be read for it."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for part in range(SAMPLES):
                file.seek(max(0, size - SAMPLE) * part // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically. NaN and infinity raise ``ValueError``: they are not JSON."""
    return write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
