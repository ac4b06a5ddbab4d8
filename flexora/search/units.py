"""What alpha has an entry for: decoder layers, or single projections of decoder layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unit:
    """One gate's reach: a whole layer (no projection), or one adapted projection of it."""

    layer: int
    projection: str | None = None

    def __str__(self) -> str:
        return str(self.layer) if self.projection is None else f"{self.layer}.{self.projection}"


@dataclass(frozen=True)
class Units:
    """All units of a search, by layer and then by projection: the flat order of alpha.

    Attributes:
        num_layers: Number of decoder layers n.
        projections: The m gated projections of a layer; none where a layer has one gate for all of them.
    """

    num_layers: int
    projections: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of alpha: ``[n]``, or ``[n, m]``."""
        return (self.num_layers,) if self.projections is None else (self.num_layers, len(self.projections))

    def __len__(self) -> int:
        return self.num_layers * len(self.projections or (None,))

    def __iter__(self) -> Iterator[Unit]:
        return (Unit(layer, name) for layer in range(self.num_layers) for name in self.projections or (None,))

    def index(self, layer: int, projection: str) -> int:
        """Flat index of the unit that gates a projection."""
        return layer if self.projections is None else layer * len(self.projections) + self.projections.index(projection)

    def targets(self, chosen: Sequence[int], adapted: Sequence[str]) -> dict[int, list[str]]:
        """The projections to adapt in each chosen layer.

        Args:
            chosen: Flat indices, sorted.
            adapted: The projections of a layer that is chosen as a whole.
        """
        units, targets = list(self), dict[int, list[str]]()
        for place in chosen:
            unit = units[place]
            targets.setdefault(unit.layer, []).extend(adapted if unit.projection is None else [unit.projection])
        return targets

    def fold(self, values: Sequence[float]) -> list[Any]:
        """Flat values in alpha's shape."""
        width = len(self.projections or ())
        if not width:
            return list(values)
        return [list(values[start : start + width]) for start in range(0, len(values), width)]


def flatten(values: Sequence[Any]) -> list[float]:
    """Values in alpha's shape as a flat list."""
    return [value for row in values for value in (row if isinstance(row, Sequence) else [row])]
