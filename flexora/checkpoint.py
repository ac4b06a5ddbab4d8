"""Checkpoints as files: whole ones are told from broken ones, and a phase goes on from the newest whole one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flexora.errors import FlexoraError
from flexora.files import sha256_of, write_hashed, write_json


class CheckpointFolder:
    """The newest checkpoints of a phase: ``step-0000050.ckpt``, and ``step-0000050.json`` with its sha256.

    The manifest is written last, so that a checkpoint without one was never finished, and does not count.

    Args:
        folder: Where they are; made when the first one is written.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        """Write a checkpoint, and delete what is older than the newest ``keep``, or of later steps.

        Later steps are those of broken checkpoints, before which the phase went on.

        Raises:
            FlexoraError: If the folder cannot be written to or the disk is full; older checkpoints are then untouched.
        """
        file = self.folder / f"step-{step:07d}.ckpt"
        try:
            if not _is_whole(file):  # as it is where a step is done again
                self._delete(file)
                digest = write_hashed(file, lambda opened: torch.save(checkpoint, opened))
                write_json(_manifest(file), {"sha256": digest})
            self._delete_all_but([old for old in self._files() if old <= file][-self.keep :])
        except OSError as error:
            raise FlexoraError(
                f"cannot write to {self.folder}: {error.strerror}; make room or choose another place"
            ) from error

    def newest(self, tell: Callable[[str], None]) -> Path | None:
        """The newest whole checkpoint; none where none was finished.

        Args:
            tell: Is given a line on each newer one that is broken, and on those without a manifest.

        Raises:
            FlexoraError: If there are some, but all are broken.
        """
        files = self._files()
        if nameless := len(set(self.folder.glob("step-*.ckpt")) - set(files)):
            tell(f"checkpoint: {nameless} without a manifest in {self.folder}; left out, and kept")
        for file in reversed(files):
            if _is_whole(file):
                return file
            tell(f"checkpoint: {file} is damaged, and passed over for an older one")
        if files:
            raise FlexoraError(f"checkpoint: none in {self.folder} is whole; delete that folder to start again")
        return None

    def _files(self) -> list[Path]:
        """The finished ones, oldest first."""
        return sorted(manifest.with_suffix(".ckpt") for manifest in self.folder.glob("step-*.json"))

    def _delete_all_but(self, kept: list[Path]) -> None:
        for file in self._files():  # one without a manifest may be somebody's, who lost that
            if file not in kept:
                self._delete(file)
        for unfinished in self.folder.glob(".step-*"):  # of a process that was killed
            unfinished.unlink()

    def _delete(self, file: Path) -> None:
        _manifest(file).unlink(missing_ok=True)  # first: half deleted is unfinished, not broken
        file.unlink(missing_ok=True)


def step_of(file: Path | None) -> int:
    """The step of a checkpoint by its name; 0 for none."""
    return 0 if file is None else int(file.stem.removeprefix("step-"))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        FlexoraError: If it is none.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise FlexoraError(f"cannot read the checkpoint {file}; delete it to start again without it") from error
    if not isinstance(checkpoint, dict):
        raise FlexoraError(f"{file} is no checkpoint; delete it to start again without it")
    return checkpoint


def _manifest(file: Path) -> Path:
    return file.with_suffix(".json")


def _is_whole(file: Path) -> bool:
    """Whether a checkpoint is the one that its manifest tells of."""
    try:
        return bool(json.loads(_manifest(file).read_text())["sha256"] == sha256_of(file))
    except (OSError, ValueError, KeyError, TypeError):
        return False
