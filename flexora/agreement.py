"""What the processes of a phase must agree on: where they go on from, and whether a checkpoint was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from torch import distributed

from flexora.errors import FlexoraError


def require_same_step(trainer: L.Trainer, step: int, folder: Path) -> None:
    """Make sure that all processes go on from the same step; call it before anything that they do together.

    Args:
        trainer: The trainer.
        step: The step that this process found.
        folder: Where it looked.

    Raises:
        FlexoraError: In all of them, if they differ.
    """
    if trainer.world_size == 1:
        return
    ends = torch.tensor([step, -step], device=trainer.strategy.root_device)
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    newest, oldest = int(ends[0]), -int(ends[1])
    if newest != oldest:
        raise FlexoraError(
            f"output_dir: the processes found checkpoints of steps {oldest} to {newest} in {folder}; it must be one "
            "folder that all machines share"
        )


def written_by_first(trainer: L.Trainer, write: Callable[[], None]) -> None:
    """Have the first process write, and wait for it.

    Args:
        trainer: The trainer.
        write: What the first process does; all call this.

    Raises:
        FlexoraError: In all of them, if it cannot.
    """
    problem: FlexoraError | None = None
    if trainer.is_global_zero:
        try:
            write()
        except FlexoraError as error:
            problem = error
    text: str | None = trainer.strategy.broadcast(None if problem is None else str(problem))
    if text is not None:
        raise FlexoraError(text) from problem
