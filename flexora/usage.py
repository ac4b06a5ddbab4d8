"""What a phase took: ``usage.json`` in its folder."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel

from flexora.errors import FlexoraError
from flexora.files import write_json


class Usage(BaseModel):
    """What a phase took, one process after another (killed ones leave no word); on several devices in the first one.

    Attributes:
        seconds: Wall time, without the start of Python.
        peak_memory_bytes: Largest memory of one process: on a GPU what torch allocated, else what was resident.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0

    @classmethod
    def read(cls, folder: Path) -> Usage:
        """What is known of a phase by its folder; nothing where there is no file, or none that can be read."""
        try:
            return cls.model_validate_json((folder / "usage.json").read_text())
        except (OSError, ValueError):
            return cls()


@contextmanager
def measured(folder: Path) -> Iterator[None]:
    """Add what the block takes to a phase's ``usage.json``, however it ends."""
    before, start = Usage.read(folder), time.perf_counter()
    try:
        yield
    finally:
        usage = Usage(
            seconds=before.seconds + time.perf_counter() - start,
            peak_memory_bytes=max(before.peak_memory_bytes, _peak_memory()),
        )
        with suppress(FlexoraError):  # a full disk has stopped the block already, and said so
            write_json(folder / "usage.json", usage.model_dump())


def _peak_memory() -> int:
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
