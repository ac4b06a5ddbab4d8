"""Selection rules: from averaged alpha to what gets an adapter. No rule ever selects nothing.

Alpha has an entry for each unit: a layer, or with module-wise gates a projection of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from flexora.errors import FlexoraError


class SelectionRule(ABC):
    """Chooses layers, or projections, from alpha."""

    @abstractmethod
    def __call__(self, alpha: Sequence[float], parameters: Sequence[int]) -> list[int]:
        """Flat indices of the chosen units, sorted, at least one.

        Args:
            alpha: Hyperparameters, one per unit.
            parameters: Adapter parameters of each unit.
        """

    def describe(self) -> dict[str, Any]:
        """Name and parameters, for ``selection.json``."""
        return {"name": type(self).__name__, **{name: value for name, value in vars(self).items() if value is not None}}


def ranked(alpha: Sequence[float]) -> list[int]:
    """Units by falling alpha; equal values keep the order of the layers."""
    return sorted(range(len(alpha)), key=lambda unit: -alpha[unit])


class Positive(SelectionRule):
    """The paper's rule: units with ``alpha > 0``.

    Where none is (alpha = 0 everywhere), the first of those with the largest alpha is taken.
    """

    def __call__(self, alpha: Sequence[float], parameters: Sequence[int]) -> list[int]:
        """Units above zero."""
        return Threshold(0.0)(alpha, parameters)


class Threshold(SelectionRule):
    """Units with alpha above a value; the one with the largest alpha where none is.

    Args:
        value: The threshold.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, alpha: Sequence[float], parameters: Sequence[int]) -> list[int]:
        """Units above the threshold."""
        return [unit for unit, value in enumerate(alpha) if value > self.value] or ranked(alpha)[:1]


class TopK(SelectionRule):
    """The k units with the largest alpha.

    Args:
        k: How many layers, or projections.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise FlexoraError(f"search.rule.k: {k} is too small; choose at least 1")
        self.k = k

    def __call__(self, alpha: Sequence[float], parameters: Sequence[int]) -> list[int]:
        """The k best units."""
        if self.k > len(alpha):
            raise FlexoraError(f"search.rule.k: {self.k} are asked for, but the model has {len(alpha)}")
        return sorted(ranked(alpha)[: self.k])


class Budget(SelectionRule):
    """The best units that fit into a number of trainable parameters, one too large for what is left being skipped.

    Args:
        parameters: Largest number of adapter parameters.
        share: Or their largest share of those of an adapter on all units, above 0 and at most 1.
    """

    def __init__(self, parameters: int | None = None, share: float | None = None) -> None:
        if (parameters is None) == (share is None):
            raise FlexoraError("search.rule: Budget needs either parameters or share, a number or a part of them all")
        if share is not None and not 0 < share <= 1:
            raise FlexoraError(f"search.rule.share: {share} must be above 0 and at most 1")
        self.parameters = parameters
        self.share = share

    def __call__(self, alpha: Sequence[float], parameters: Sequence[int]) -> list[int]:
        """The best units within the budget."""
        left = int((self.share or 0.0) * sum(parameters)) if self.parameters is None else self.parameters
        chosen = []
        for unit in ranked(alpha):
            if parameters[unit] <= left:
                chosen.append(unit)
                left -= parameters[unit]
        if not chosen:
            given = f"share: {self.share}" if self.parameters is None else f"parameters: {self.parameters}"
            raise FlexoraError(f"search.rule.{given} is too small; the smallest choice needs {min(parameters)}")
        return sorted(chosen)
