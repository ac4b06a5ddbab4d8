"""The control of an arm that chooses single projections: as many parameters, on projections drawn at random."""

from __future__ import annotations

from flexora.backbone.families import family_of
from flexora.compare.selectors import LayerSelector, Task
from flexora.errors import FlexoraError
from flexora.search.gates import Gates
from flexora.search.rules import Budget
from flexora.search.selection import Targets


class RandomModules(LayerSelector):
    """Projections drawn at random among those that an arm's search chose from; others for each trial.

    Together they have at most as many parameters as that arm's adapter: one that is too large for what is left is
    skipped, as :class:`~flexora.search.rules.Budget` does.

    Args:
        like: The arm with gates of projections, for the same benchmark and seed. The adapter's settings must be its.
    """

    looks = True

    def __init__(self, like: str) -> None:
        self.like = like

    @property
    def needs(self) -> list[str]:
        """The arm whose number of parameters is taken."""
        return [self.like]

    def choose(self, task: Task) -> Targets:
        """The drawn projections of each layer.

        Raises:
            FlexoraError: If that arm chose whole layers, or among other projections than this one's adapter names.
        """
        found = task.selections[self.like]
        if found.projections is None:
            raise FlexoraError(
                f"compare: RandomModules: {self.like} has no gates of projections; set its search.gates to module, or "
                "take RandomLayers"
            )
        assert task.module is not None, "the task has no module"
        wanted = family_of(found.base.architecture).expand(task.module.adapter.target_modules)
        if set(wanted) != set(found.projections):
            raise FlexoraError(
                f"compare: RandomModules: {self.like} chose among {', '.join(found.projections)}, but this arm's "
                f"adapter.target_modules are {', '.join(wanted)}; give it the adapter of {self.like}"
            )
        task.module.configure_model()
        sizes = Gates(task.module.peft_model, family_of(found.base.architecture).layers, found.units).parameters
        spent = sum(size for unit, size in zip(found.units, sizes, strict=True) if found.has_chosen(unit))
        drawn = task.generator()
        return found.units.targets(Budget(spent)([drawn.random() for _ in sizes], sizes), found.projections)
