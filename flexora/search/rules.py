"""Selection rules: from averaged alpha to the layers that get an adapter. No rule ever selects nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from flexora.errors import FlexoraError


class SelectionRule(ABC):
    """Chooses layers from alpha."""

    @abstractmethod
    def __call__(self, alpha: Sequence[float], layer_parameters: int) -> list[int]:
        """Chosen layers, sorted, at least one.

        Args:
            alpha: Layer hyperparameters, one per layer.
            layer_parameters: Adapter parameters of one layer.
        """

    def describe(self) -> dict[str, Any]:
        """Name and parameters, for ``selection.json``."""
        return {"name": type(self).__name__, **vars(self)}


def ranked(alpha: Sequence[float]) -> list[int]:
    """Layers by falling alpha; equal values keep the order of the layers."""
    return sorted(range(len(alpha)), key=lambda layer: -alpha[layer])


class Positive(SelectionRule):
    """The paper's rule: layers with ``alpha > 0``.

    Where none is (alpha = 0 everywhere), the first of the layers with the largest alpha is taken.
    """

    def __call__(self, alpha: Sequence[float], layer_parameters: int) -> list[int]:
        """Layers above zero."""
        return Threshold(0.0)(alpha, layer_parameters)


class Threshold(SelectionRule):
    """Layers with alpha above a value; the layer with the largest alpha where none is.

    Args:
        value: The threshold.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, alpha: Sequence[float], layer_parameters: int) -> list[int]:
        """Layers above the threshold."""
        return [layer for layer, value in enumerate(alpha) if value > self.value] or ranked(alpha)[:1]


class TopK(SelectionRule):
    """The k layers with the largest alpha.

    Args:
        k: How many layers.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise FlexoraError(f"search.rule.k: {k} is too small; choose at least one layer")
        self.k = k

    def __call__(self, alpha: Sequence[float], layer_parameters: int) -> list[int]:
        """The k best layers."""
        if self.k > len(alpha):
            raise FlexoraError(f"search.rule.k: {self.k} layers are asked for, but the model has {len(alpha)}")
        return sorted(ranked(alpha)[: self.k])


class Budget(SelectionRule):
    """As many of the best layers as fit into a number of trainable parameters.

    Args:
        parameters: Largest number of adapter parameters.
    """

    def __init__(self, parameters: int) -> None:
        self.parameters = parameters

    def __call__(self, alpha: Sequence[float], layer_parameters: int) -> list[int]:
        """The best layers within the budget."""
        count = min(self.parameters // layer_parameters, len(alpha))
        if count < 1:
            raise FlexoraError(
                f"search.rule.parameters: {self.parameters} is too small; one layer needs {layer_parameters}"
            )
        return sorted(ranked(alpha)[:count])
