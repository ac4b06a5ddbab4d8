"""The processes that share a search: each has micro-batches of its own, and gradients are summed explicitly.

Lightning's DDP strategy starts the processes. Its wrapper would synchronise in hooks of ``backward``, which
``torch.autograd.grad`` does not run; LoRA's gradients are small enough to be reduced in one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """How micro-batches are spread over processes, and sums over all of them.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def place(self, index: int) -> int:
        """Number of this process's micro-batch ``index`` among those of all: they are dealt in turn."""
        return index * self.world_size + self.rank

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over all processes, with the same bits on each; all of one precision."""
        if self.world_size == 1:
            return list(tensors)
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(joined)
        parts = torch.split_with_sizes(joined, [tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def sum_number(self, number: float, device: torch.device) -> float:
        """A number summed over all processes."""
        if self.world_size == 1:
            return number
        return self.sum([torch.tensor(number, dtype=torch.float64, device=device)])[0].item()
