"""Checkpoints as files: a phase that cannot read its own says which file, instead of a traceback of pickle."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from flexora.errors import FlexoraError
from flexora.files import write_atomically


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        FlexoraError: If it is broken.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise FlexoraError(f"cannot read the checkpoint {path}; delete it to start again without it") from error
    if not isinstance(checkpoint, dict):
        raise FlexoraError(f"{path} is no checkpoint; delete it to start again without it")
    return checkpoint


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(path, buffer.getvalue())
