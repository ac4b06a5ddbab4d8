"""What a phase took: ``usage.json`` in its folder."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from flexora.files import write_json


class Usage(BaseModel):
    """What a phase took, summed over the processes that worked on it; killed ones leave no word.

    Attributes:
        seconds: Wall time, without the start of Python.
        peak_memory_bytes: Largest memory of one process: on a GPU what torch allocated, else what was resident.
        device: ``cuda`` or ``cpu``.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = "cpu"

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
        device, peak = _peak_memory()
        usage = Usage(
            seconds=before.seconds + time.perf_counter() - start,
            peak_memory_bytes=max(before.peak_memory_bytes, peak),
            device=device,
        )
        write_json(folder / "usage.json", json.loads(usage.model_dump_json()))


def _peak_memory() -> tuple[str, int]:
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return "cuda", torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return "cpu", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
