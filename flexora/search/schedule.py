"""Learning-rate schedules of the inner steps: transformers' own, as a function of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from transformers import get_scheduler

ScheduleName = Literal["constant", "linear", "cosine"]

#: The factor of the learning rate at inner step 0, 1, ...
Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """The schedule that leaves the learning rate as it is."""
    return 1.0


def schedule(name: ScheduleName, warmup_ratio: float, steps: int) -> Schedule:
    """A schedule over all inner steps of a search, or of each of its repeats.

    The way back of the unrolled step needs the factor of any step, not a scheduler that is stepped: transformers keeps
    such a function inside its schedulers.

    Args:
        name: What follows the warm-up.
        warmup_ratio: Share of the steps over which the learning rate rises from 0.
        steps: Inner steps, K * T.
    """
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(kind, stand_in, num_warmup_steps=round(warmup_ratio * steps), num_training_steps=steps)
    return cast("Schedule", scheduler.lr_lambdas[0])
