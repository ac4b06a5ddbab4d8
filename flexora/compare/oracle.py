"""How far a selector is from the best choice, where every choice can be tried: all subsets of a few groups of layers.

A selector is judged by its scores of the layers alone: those of a probe, or alpha of a search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import mean

import torch
from torchmetrics.functional.regression import spearman_corrcoef

from flexora.errors import FlexoraError

#: Indices of groups, sorted.
Subset = tuple[int, ...]


@dataclass(frozen=True)
class SizeVerdict:
    """A selector among the subsets of one size.

    Attributes:
        size: Number of groups of each subset.
        regret: Loss of the groups with the highest scores, above that of the best subset; in nats.
        random_regret: What a subset drawn at random has on average.
        correlation: Spearman's, of a subset's summed scores with how low its loss is: 1 where the order is the same,
            0 where the scores are all equal.
    """

    size: int
    regret: float
    random_regret: float
    correlation: float


@dataclass(frozen=True)
class Verdict:
    """A selector among the subsets of every size, but for the largest, which leaves no choice."""

    sizes: list[SizeVerdict]

    @property
    def regret(self) -> float:
        """Mean regret as a share of a random subset's: 0 for the best subsets, 1 for what chance does."""
        random_regret = mean(at.random_regret for at in self.sizes)
        return mean(at.regret for at in self.sizes) / random_regret if random_regret else 0.0

    @property
    def correlation(self) -> float:
        """Mean over the sizes."""
        return mean(at.correlation for at in self.sizes)


def groups(n: int, m: int) -> list[list[int]]:
    """Cut n layers into m contiguous groups, as equal as can be.

    Raises:
        FlexoraError: If there are fewer than two groups, which leaves no choice, or fewer layers than groups.
    """
    if not 2 <= m <= n:
        raise FlexoraError(f"oracle: {n} layers cannot make {m} groups; choose 2 to {n}")
    ends = [place * n // m for place in range(m + 1)]
    return [list(range(ends[place], ends[place + 1])) for place in range(m)]


def subsets(m: int) -> list[Subset]:
    """All ``2^m - 1`` subsets of m groups that are not empty, by size."""
    return list(chain.from_iterable(combinations(range(m), size) for size in range(1, m + 1)))


def group_scores(scores: Sequence[float], cut: Sequence[Sequence[int]]) -> list[float]:
    """Mean score of each group's layers, ``[m]``, from the scores of all layers, ``[n]``."""
    return [mean(scores[layer] for layer in group) for group in cut]


def verdict(losses: Mapping[Subset, float], scores: Sequence[float]) -> Verdict:
    """Judge a selector.

    Args:
        losses: Loss on held-out rows after a fine-tune of each of the :func:`subsets`.
        scores: The selector's score of each group, ``[m]``; of equal ones the lower group comes first.

    Raises:
        FlexoraError: If a subset was not tried.
    """
    missing = [subset for subset in subsets(len(scores)) if subset not in losses]
    if missing:
        raise FlexoraError(f"oracle: {len(missing)} subsets have no loss, e.g. {missing[0]}; fine-tune them all")
    order = sorted(range(len(scores)), key=lambda group: -scores[group])
    sizes = []
    for size in range(1, len(scores)):
        tried = {subset: losses[subset] for subset in combinations(range(len(scores)), size)}
        best = min(tried.values())
        chosen = tried[tuple(sorted(order[:size]))]
        gains = torch.tensor([-loss for loss in tried.values()], dtype=torch.float64)
        predicted = torch.tensor([sum(scores[group] for group in subset) for subset in tried], dtype=torch.float64)
        correlation = float(spearman_corrcoef(predicted, gains))
        sizes.append(SizeVerdict(size, chosen - best, mean(tried.values()) - best, correlation))
    return Verdict(sizes)
