"""Random numbers as a pure function of where they are used: nothing has to be saved, and a step can be replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def step_seed(seed: int, *place: int) -> int:
    """Where the dropout seeds of a step start: spread by a hash, so that no two runs share any.

    Args:
        seed: The run's seed.
        place: Number of the step, and of what else has masks of its own. Zeros at the end make no difference.
    """
    (drawn,) = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)
    return int(drawn) >> 1  # torch takes what fits into 64 bits, and gradients count up from here


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside the block and give them their old states back after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
