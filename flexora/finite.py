"""Losses, gradients and gates that are infinite or not a number: found before a step is made with them, and named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from datasets import Dataset

#: Rows that a message names.
SHOWN = 16


class NonFiniteError(FlexoraError):
    """A value that no step may be made with.

    Attributes:
        what: The value in words, as ``the loss is nan``.
        rows: Numbers of the rows that it was computed from, in the order of the split.
        held_out: Whether they are rows of the held-out split, and not of the training rows.
    """

    def __init__(self, what: str, rows: Sequence[int] = (), *, held_out: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.rows = rows
        self.held_out = held_out

    def told(self, split: Dataset, unit: str, otherwise: Sequence[int] = ()) -> str:
        """The value and its rows, in words.

        Args:
            split: The rows that were trained on, or held out, with the column ``line``.
            unit: What ``line`` counts: lines of a file, or rows.
            otherwise: The step's training rows, where the value was made of all of them.
        """
        lines = sorted(split.select(set(self.rows or otherwise))["line"])
        shown = ", ".join(map(str, lines[:SHOWN])) + (", ..." if len(lines) > SHOWN else "")
        return f"{self.what} ({'held-out' if self.held_out else 'training'} {unit}s {shown})"


def leave_out(place: str, told: str, count: int, allowed: int, setting: str) -> str:
    """Word of a step that is left out.

    Args:
        place: Phase and step.
        told: What was found there.
        count: Such steps so far, with this one.
        allowed: How many may be left out.
        setting: The learning rate that is probably too high, as the phase's setting.

    Raises:
        FlexoraError: If there were more.
    """
    skip = f"{setting.partition('.')[0]}.skip_non_finite"
    if count > allowed:
        used = f" (now {allowed}, all used)" if allowed else ""
        raise FlexoraError(
            f"{place}: {told}; no step was made with it; lower {setting}, or let {skip}{used} leave out more such steps"
        )
    return f"{place} is left out: {told}; {count} of at most {allowed} ({skip})"


def require_finite(
    loss: float,
    losses: Sequence[tuple[float, Tensor]],
    gradients: Sequence[Tensor],
    names: Iterable[str],
    world_size: int = 1,
    *,
    held_out: bool = False,
) -> None:
    """Stop before a step that no later one could mend.

    Args:
        loss: The sum of all losses, over all processes.
        losses: For each micro-batch of this process its loss, and the numbers of its rows, ``[rows]``.
        gradients: Their gradients, summed over all processes.
        names: The name of each gradient's parameter, for the message.
        world_size: Number of processes, all of which must call this with the same loss and gradients.
        held_out: Whether the rows are of the held-out split.

    Raises:
        NonFiniteError: If a loss or an entry of a gradient is infinite or not a number; in all processes.
    """
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    finite = math.isfinite(float(torch.nn.utils.get_total_norm(filter(Tensor.numel, local), math.inf)))
    if any(isinstance(gradient, DTensor) for gradient in gradients):  # each process has seen its shard alone
        bad = torch.tensor(not finite, dtype=torch.int32, device=local[0].device)
        distributed.all_reduce(bad, distributed.ReduceOp.MAX)
        finite = not bad
    if finite and math.isfinite(loss):
        return
    here = ([(loss, rows.tolist()) for loss, rows in losses], _first_bad(local, names))
    found = [here]
    if world_size > 1:
        found = [here] * world_size
        distributed.all_gather_object(found, here)
    parts = [part for own, _ in found for part in own]
    wrong = [part for part in parts if not math.isfinite(part[0])]
    what = f"the loss is {wrong[0][0]}" if wrong else next(named for _, named in found if named)
    raise NonFiniteError(what, [row for _, rows in wrong or parts for row in rows], held_out=held_out)


def _first_bad(gradients: Sequence[Tensor], names: Iterable[str]) -> str | None:
    for name, gradient in zip(names, gradients, strict=True):
        size = gradient.abs().max().item() if gradient.numel() else 0.0
        if not math.isfinite(size):
            return f"the gradient of {name} is {size}"
    return None
