"""The state of a search between two outer steps: what its checkpoints hold."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flexora.search.history import HistoryRow
from flexora.search.inner import InnerState

if TYPE_CHECKING:
    from flexora.search.module import SearchModule


def snapshot(search: SearchModule) -> dict[str, Any]:
    """Everything that the next outer step depends on, where it lies; later steps leave it as it is.

    What they change in place is copied: alpha, Adam's state and theta. The inner optimiser's buffers they replace. The
    frozen base model is not part of it, and no generator of random numbers: rows and dropout masks are pure functions
    of seed and step.
    """
    problem = search.bilevel_problem
    return {
        "alpha": search.alpha.detach().clone(),
        "theta": problem.copy_theta(),
        "inner_step": problem.state.step,
        "inner_clock": problem.state.clock,
        "inner_buffers": problem.state.buffers,
        "outer_optimizer": copy.deepcopy(search.outer_optimizer.state_dict()),
        "world_size": problem.processes.world_size,
        "history": list(search.history),
    }


def to_file(kept: dict[str, Any]) -> dict[str, Any]:
    """A :func:`snapshot` in the machine's memory and in plain types alone, as a checkpoint holds it."""
    return {
        **kept,
        "alpha": _copy(kept["alpha"]),
        "theta": [_copy(tensor) for tensor in kept["theta"]],
        "inner_buffers": [[_copy(buffer) for buffer in buffers] for buffers in kept["inner_buffers"]],
        "history": [asdict(row) for row in kept["history"]],
    }


def restore(search: SearchModule, kept: dict[str, Any]) -> None:
    """Continue from a :func:`snapshot` in plain types; call it once the optimisers exist (``on_train_start``)."""
    problem = search.bilevel_problem
    with torch.no_grad():
        search.alpha.copy_(kept["alpha"])
    problem.move(kept["theta"])
    problem.state = InnerState(kept["inner_step"], kept["inner_buffers"], kept["inner_clock"])
    search.outer_optimizer.load_state_dict(kept["outer_optimizer"])
    search.history = [HistoryRow(**row) for row in kept["history"]]


def _copy(tensor: Tensor) -> Tensor:
    """A copy of its own: a file of a view would hold all that it is a view of."""
    return tensor.detach().to("cpu", copy=True)
