"""Study recipes: benchmarks, arms and seeds, and the trials that they are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import jsonargparse

import flexora.compare.modules
import flexora.compare.probes  # noqa: F401 - so that short class names resolve
from flexora.compare.selectors import LayerSelector, NoLayers
from flexora.errors import FlexoraError, require_at_least
from flexora.places import own_path
from flexora.recipe import RecipeParser
from flexora.recipes import find_recipe
from flexora.runfolder import RunFolder
from flexora.trust import restrict_imports, same_class


@dataclass(frozen=True)
class Arm:
    """One way to choose layers and to train an adapter on them.

    Attributes:
        layers: What chooses the layers.
        settings: Settings on top of the recipe's and the study's, in the recipe's own sections.
        learning_rates: Learning rates to try; the one with the lowest loss on the held-out rows is kept. It is tuned
            with the first seed, whose trial is charged for it, and taken over by the others.
        learning_rate_of: The arm whose tuned learning rate is taken over, for the same benchmark.
        draws: Trials for each seed, of a selector that draws layers at random.
    """

    layers: LayerSelector
    settings: dict = field(default_factory=dict)  # type: ignore[type-arg]  # of dict[str, Any] jsonargparse makes classes
    learning_rates: list[float] = field(default_factory=list)
    learning_rate_of: str | None = None
    draws: int = 1


@dataclass(frozen=True)
class Trial:
    """One arm on one benchmark with one seed.

    Attributes:
        benchmark: Name of the benchmark.
        arm: Name of the arm.
        seed: The seed; of the base model, which has none, the study's first.
        draw: Number of the draw, from 0.
    """

    benchmark: str
    arm: str
    seed: int
    draw: int = 0

    def __str__(self) -> str:
        return f"{slug(self.benchmark)}/{slug(self.arm)}/{self.seed}" + (f"-{self.draw}" if self.draw else "")


def slug(name: str) -> str:
    """A name as part of a path: lower case letters and digits of any script, and hyphens."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Study:
    """A parsed study recipe.

    Attributes:
        title: Heading of the report.
        output_dir: Folder of everything.
        recipes: For each benchmark, by the name it is to have, a recipe: a file, or a name of the collection.
        settings: Settings on top of every recipe, in a recipe's sections.
        seeds: Seeds of the trials: of adapters, order and dropout, and of the rows that are trained on and held out.
        resample: Whether each seed has training rows and held-out rows of its own (``data.train_seed``).
        arms: The arms, by name, in the order they are shown.
        reference: The arm that the others are compared with.
    """

    title: str
    output_dir: str
    recipes: dict[str, str]
    settings: dict[str, Any]
    seeds: list[int]
    resample: bool
    arms: dict[str, Arm]
    reference: str

    @cached_property
    def folder(self) -> Path:
        """Folder of everything."""
        return own_path(self.output_dir, "output_dir")

    @property
    def results(self) -> Path:
        """Folder of the results."""
        return self.folder / "compare"

    def run_folder(self, trial: Trial) -> RunFolder:
        """Folder of a trial's phases."""
        return RunFolder(self.folder / "trials" / str(trial))

    def base_recipe(self, trial: Trial) -> Path:
        """The recipe that a trial starts from.

        Raises:
            FlexoraError: If there is none.
        """
        name = self.recipes[trial.benchmark]
        if Path(name).is_file():
            return Path(name)
        try:
            return find_recipe(name).path
        except FlexoraError as error:  # a study may be given from another folder than the one it was written for
            raise FlexoraError(
                f"recipes: {Path(name).absolute()} is no file, and flexora recipes ls shows no {name}; mend the path, "
                "which counts from the working directory"
            ) from error

    def is_base(self, arm: str) -> bool:
        """Whether an arm is the base model, which has neither seed nor adapter."""
        return isinstance(self.arms[arm].layers, NoLayers)

    @property
    def untuned(self) -> list[str]:
        """Arms that train at the recipe's learning rate where that of others is tuned: no fair comparison."""
        if not any(arm.learning_rates for arm in self.arms.values()):
            return []
        return [
            name
            for name, arm in self.arms.items()
            if not (self.is_base(name) or arm.learning_rates or arm.learning_rate_of)
            and "learning_rate" not in arm.settings.get("finetune", {})
        ]

    @property
    def trials(self) -> list[Trial]:
        """Every trial, the first seed of all before the second."""
        return [
            Trial(benchmark, name, seed, draw)
            for seed in self.seeds
            for benchmark in self.recipes
            for name, arm in self.arms.items()
            for draw in range(arm.draws)
            if seed == self.seeds[0] or not self.is_base(name)
        ]

    def needs(self, trial: Trial) -> list[Trial]:
        """The trials that must be done before: of the arms it takes numbers of layers, alpha or learning rates from."""
        arm = self.arms[trial.arm]
        first = self.seeds[0]
        needed = [Trial(trial.benchmark, name, trial.seed) for name in arm.layers.needs]
        if arm.learning_rate_of is not None:
            needed.append(Trial(trial.benchmark, arm.learning_rate_of, first))
        if arm.learning_rates and trial != Trial(trial.benchmark, trial.arm, first):
            needed.append(Trial(trial.benchmark, trial.arm, first))
        return needed

    def with_needs(self, trials: Sequence[Trial]) -> dict[Trial, list[Trial]]:
        """These trials and all that must be done before, each with what it needs itself."""
        graph: dict[Trial, list[Trial]] = {}
        open_ones = list(trials)
        while open_ones:
            trial = open_ones.pop(0)
            if trial not in graph:
                graph[trial] = self.needs(trial)
                open_ones += graph[trial]
        return graph

    def settings_of(self, trial: Trial) -> dict[str, Any]:
        """The settings of a trial on top of its recipe's."""
        own: dict[str, Any] = {"seed": trial.seed, "output_dir": str(self.run_folder(trial).root)}
        if self.resample and not self.is_base(trial.arm):
            own["data"] = {"init_args": {"train_seed": trial.seed}}
        return merged(merged(self.settings, self.arms[trial.arm].settings), own)


def merged(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with others on top; a class that is named stands in the place of another one and its settings."""
    if "class_path" in more and not same_class(more["class_path"], settings.get("class_path")):
        return more
    both = {name: (settings[name], more[name]) for name in settings.keys() & more.keys()}
    inner = {n: merged(a, b) if isinstance(a, dict) and isinstance(b, dict) else b for n, (a, b) in both.items()}
    return {**settings, **more, **inner}


def study_parser() -> RecipeParser:
    """The typed parser of study recipes, and of the command's own options."""
    restrict_imports()
    parser = RecipeParser(
        prog="flexora compare",
        description="Train and score every arm of a study on the same rows with the same steps. Finished trials are "
        "kept: the same command goes on where it stopped. --results FOLDER shows a finished study's table, and writes "
        "its report again.",
        exit_on_error=True,
    )
    parser.add_argument("--config", action="config", help="A study recipe.")
    parser.add_argument("--title", type=str, default="", help="Heading of the report.")
    parser.add_argument("--output_dir", type=str, default="runs/study", help="Folder of everything.")
    parser.add_argument("--recipes", type=dict[str, str], default={}, help="A recipe for each benchmark.")
    parser.add_argument("--settings", type=dict, default={}, help="Settings on top of every recipe.")
    parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="Seeds of the trials.")
    parser.add_argument("--resample", type=bool, default=True, help="Whether each seed draws training rows of its own.")
    parser.add_argument("--arms", type=dict[str, Arm], default={}, help="The arms, by name.")
    parser.add_argument("--reference", type=str, default="", help="The arm that others are compared with.")
    parser.add_argument("--only", nargs="+", default=[], help="Patterns of trials, such as 'arc-easy/*/0'.")
    parser.add_argument("--results", type=str | None, help="Folder of a study's results, to show again.")
    parser.add_argument("--finished", nargs="+", default=[], help="trials.jsonl of other machines, not to be redone.")
    parser.add_argument("--jobs", type=int, default=1, help="Trials at the same time, sharing cores and GPUs.")
    return parser


def make_study(namespace: jsonargparse.Namespace) -> Study:
    """The study that was parsed.

    Raises:
        FlexoraError: If it has no arms, settings are empty, an arm or benchmark is named twice, or an arm refers to one
            that is not there.
    """
    values = vars(namespace)
    study = Study(**{name: values[name] for name in Study.__dataclass_fields__})
    for name, found in (("recipes", study.recipes), ("arms", study.arms), ("seeds", study.seeds)):
        if not found:
            raise FlexoraError(f"compare: {name}: the study has none; name at least one")
    own = {"settings": study.settings, **{f"arms.{name}.settings": arm.settings for name, arm in study.arms.items()}}
    for name, settings in own.items():
        if settings is None:
            raise FlexoraError(f"compare: {name}: here is nothing; fill it or remove it")
    named = {"recipes": list(study.recipes), "arms": list(study.arms), "seeds": list(map(str, study.seeds))}
    for name, names in named.items():
        folders = {slug(one) for one in names}
        if "" in folders:
            raise FlexoraError(f"compare: {name}: a name has neither letters nor digits; give it some")
        if len(folders) < len(names):
            raise FlexoraError(f"compare: {name}: two have the same folder name; give each letters of its own")
    if study.reference not in study.arms:
        raise FlexoraError(f"compare: reference: {study.reference!r} is no arm; name one of {', '.join(study.arms)}")
    for name, arm in study.arms.items():
        _require_arm(study, name, arm)
    try:
        TopologicalSorter(study.with_needs(study.trials)).prepare()
    except CycleError as error:
        arms = " -> ".join(dict.fromkeys(trial.arm for trial in error.args[1]))
        raise FlexoraError(f"compare: arms: {arms} need each other; let one make its own choice") from error
    return study


def _require_arm(study: Study, name: str, arm: Arm) -> None:
    for other in [*arm.layers.needs, *([arm.learning_rate_of] if arm.learning_rate_of else [])]:
        if other not in study.arms or other == name:
            raise FlexoraError(f"compare: arms.{name}: {other!r} is no other arm; name one of {', '.join(study.arms)}")
    if arm.learning_rates and arm.learning_rate_of:
        raise FlexoraError(f"compare: arms.{name}: give learning_rates or learning_rate_of, not both")
    require_at_least(1, f"compare: arms.{name}", {"draws": arm.draws})
    try:
        json.dumps(arm.layers.describe())
    except (TypeError, ValueError) as error:  # trials are written with it, hours later
        kind = type(arm.layers).__name__
        raise FlexoraError(
            f"compare: arms.{name}.layers: what {kind} keeps is not all JSON ({error}); let describe() leave it out"
        ) from error


def instantiated(parser: RecipeParser, arguments: Sequence[str]) -> jsonargparse.Namespace:
    """Parse a command line, with the selectors as objects."""
    namespace: jsonargparse.Namespace = parser.instantiate_classes(parser.parse_args(list(arguments)))
    return namespace


def matching(trials: Sequence[Trial], patterns: Sequence[str]) -> Iterator[Trial]:
    """The trials whose names, with or without the number of the draw, match one of the patterns; all without any."""
    for trial in trials:
        names = (str(trial), str(replace(trial, draw=0)))
        if not patterns or any(fnmatch(name, pattern) for name in names for pattern in patterns):
            yield trial
