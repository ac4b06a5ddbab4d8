"""What chooses the layers of an arm: the search, controls, and, in :mod:`flexora.compare.probes`, probes."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flexora.errors import FlexoraError
from flexora.search.rules import SelectionRule
from flexora.search.selection import Selection, Targets
from flexora.search.units import flatten

if TYPE_CHECKING:
    import lightning as L

    from flexora.data.datamodule import AnswerDataModule
    from flexora.finetune.module import FinetuneModule


@dataclass(frozen=True)
class Task:
    """What a selector may look at.

    Attributes:
        num_layers: Number of decoder layers n.
        benchmark: The trial's benchmark.
        seed: Its seed.
        draw: Number of the draw, of an arm with several.
        selections: What the arms chose that the selector named in ``needs``, for the same benchmark and seed.
        trainer: Settings of the recipe's trainer, with those of its fine-tune.
        module: The fine-tune with an adapter on all layers; it loads its model in ``configure_model``.
        data: The benchmark. A selector may use its ``train_set`` and ``validation_set``.
    """

    num_layers: int
    benchmark: str
    seed: int
    draw: int
    selections: Mapping[str, Selection]
    trainer: Mapping[str, Any]
    module: FinetuneModule | None = None
    data: AnswerDataModule | None = None

    def generator(self) -> random.Random:
        """Random numbers of the trial's own: not those of another benchmark, seed or draw."""
        return random.Random(f"{self.benchmark} {self.seed} {self.draw}")

    def new_trainer(self, **settings: Any) -> L.Trainer:
        """A Trainer on the recipe's device, in its precision, that leaves nothing behind."""
        import lightning as L

        kept = {name: self.trainer[name] for name in ("accelerator", "precision") if self.trainer.get(name)}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "devices": 1}
        return L.Trainer(
            **{**kept, **quiet, "enable_progress_bar": False, "use_distributed_sampler": False, **settings}
        )


class LayerSelector(ABC):
    """Chooses the layers of an arm."""

    #: Whether it looks at model and rows, and so gets a process of its own.
    looks: bool = False

    @abstractmethod
    def choose(self, task: Task) -> list[int] | Targets:
        """The chosen layers: sorted 0-based indices, at least one; or for each of them the projections to adapt."""

    @property
    def needs(self) -> list[str]:
        """Arms that must be done before."""
        return []

    def describe(self) -> dict[str, Any]:
        """Name and settings, as JSON takes them."""
        settings = {k: v.describe() if isinstance(v, SelectionRule) else v for k, v in vars(self).items()}
        return {"name": type(self).__name__, **settings}


class NoLayers(LayerSelector):
    """The base model as it is."""

    def choose(self, task: Task) -> list[int]:
        """No layer."""
        return []


class Search(LayerSelector):
    """The search phase, with the settings of the recipe's ``search`` section and of the arm."""

    def choose(self, task: Task) -> list[int]:
        """Not here.

        Raises:
            FlexoraError: Always: ``flexora search`` chooses.
        """
        raise FlexoraError("compare: the layers of a Search arm are chosen by flexora search")


class AllLayers(LayerSelector):
    """Every layer, as plain LoRA."""

    def choose(self, task: Task) -> list[int]:
        """All layers."""
        return list(range(task.num_layers))


class FromSearch(LayerSelector):
    """What an arm that has searched chose, or another rule on its alpha; a warm start takes over its LoRA.

    Args:
        arm: Name of that arm.
        rule: The other rule, for an arm with a gate for each layer.
    """

    def __init__(self, arm: str, rule: SelectionRule | None = None) -> None:
        self.arm = arm
        self.rule = rule

    @property
    def needs(self) -> list[str]:
        """The arm that has searched."""
        return [self.arm]

    def choose(self, task: Task) -> list[int] | Targets:
        """The other arm's choice, or what the rule says of its alpha.

        Raises:
            FlexoraError: If that arm has not searched, or a rule is given and it has gates for projections.
        """
        found = task.selections[self.arm]
        if found.alpha is None:
            raise FlexoraError(f"compare: FromSearch: {self.arm} has no alpha; name an arm with Search")
        if self.rule is None:
            return found.layers if found.projections is None else found.targets
        if found.projections is not None:
            raise FlexoraError(f"compare: FromSearch: {self.arm} has gates of projections; give no rule")
        sizes = (found.search or {}).get("unit_sizes") or [1]
        return self.rule(flatten(found.alpha), [sizes[0]] * found.num_layers)


class Counted(LayerSelector):
    """Chooses a number of layers.

    Args:
        k: The number.
        like: The arm whose number it takes instead, for the same benchmark and seed.
    """

    def __init__(self, k: int | None = None, like: str | None = None) -> None:
        if (k is None) == (like is None):
            raise FlexoraError(f"compare: {type(self).__name__} needs either k or like, a number or the name of an arm")
        if k is not None and k < 1:
            raise FlexoraError(f"compare: {type(self).__name__}.k: {k} is too small; choose at least 1")
        self.k = k
        self.like = like

    @property
    def needs(self) -> list[str]:
        """The arm whose number of layers is taken."""
        return [] if self.like is None else [self.like]

    def count(self, task: Task) -> int:
        """How many layers.

        Raises:
            FlexoraError: If the model has fewer, or the arm that ``like`` names chose single projections: as many whole
                layers would have more parameters.
        """
        if self.like is not None and task.selections[self.like].projections is not None:
            raise FlexoraError(
                f"compare: {type(self).__name__}: {self.like} has gates of projections, and as many whole layers are "
                "another size; give k, or take RandomModules"
            )
        count = self.k if self.like is None else len(task.selections[self.like].layers)
        if count is None or count > task.num_layers:
            raise FlexoraError(f"compare: {type(self).__name__}: {count} layers are asked for of {task.num_layers}")
        return count


class RandomLayers(Counted):
    """Layers drawn at random; another choice for each benchmark, seed and draw."""

    def choose(self, task: Task) -> list[int]:
        """A random choice."""
        return sorted(task.generator().sample(range(task.num_layers), self.count(task)))


class FirstLayers(Counted):
    """The layers nearest to the input."""

    def choose(self, task: Task) -> list[int]:
        """The first k."""
        return list(range(self.count(task)))


class LastLayers(Counted):
    """The layers nearest to the head."""

    def choose(self, task: Task) -> list[int]:
        """The last k."""
        return list(range(task.num_layers))[-self.count(task) :]


class SpreadLayers(Counted):
    """Layers at even distances; every second one for half of them."""

    def choose(self, task: Task) -> list[int]:
        """The k layers nearest to even distances."""
        count = self.count(task)
        return [place * task.num_layers // count for place in range(count)]


class Scored(Counted):
    """Gives each layer a score, and chooses those with the highest."""

    looks = True

    @abstractmethod
    def scores(self, task: Task) -> Sequence[float]:
        """How much each layer deserves an adapter, ``[n]``."""

    def choose(self, task: Task) -> list[int]:
        """The k layers with the highest scores."""
        scores = self.scores(task)
        return sorted(sorted(range(task.num_layers), key=lambda layer: -scores[layer])[: self.count(task)])
