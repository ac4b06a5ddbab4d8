"""The state of a search between two outer steps: what its checkpoints hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from flexora.search.history import HistoryRow
from flexora.search.inner import InnerState

if TYPE_CHECKING:
    from flexora.search.module import SearchModule


def snapshot(search: SearchModule) -> dict[str, Any]:
    """Everything that the next outer step depends on; the frozen base model is not part of it."""
    problem = search.bilevel_problem
    return {
        "alpha": search.alpha.detach(),
        "theta": [parameter.detach() for parameter in problem.theta],
        "inner_step": problem.state.step,
        "inner_clock": problem.state.clock,
        "inner_buffers": problem.state.buffers,
        "outer_optimizer": search.outer_optimizer.state_dict(),
        "world_size": problem.processes.world_size,
        "history": [asdict(row) for row in search.history],
    }


def restore(search: SearchModule, kept: dict[str, Any]) -> None:
    """Continue from a :func:`snapshot`; call it once the optimisers exist (``on_train_start`` or later)."""
    problem = search.bilevel_problem
    with torch.no_grad():
        search.alpha.copy_(kept["alpha"])
    problem.move(kept["theta"])
    problem.state = InnerState(kept["inner_step"], kept["inner_buffers"], kept["inner_clock"])
    search.outer_optimizer.load_state_dict(kept["outer_optimizer"])
    search.history = [HistoryRow(**row) for row in kept["history"]]
