"""What can be known of a study before its first trial."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from flexora.backbone.limits import Phase
from flexora.compare.selectors import FromSearch, Search
from flexora.compare.study import Study, Trial, instantiated, make_study, study_parser
from flexora.errors import FlexoraError
from flexora.verbs.checks import checks
from flexora.verbs.settings import Recipe


def study_of(path: Path) -> Study:
    """The study of a recipe file.

    Raises:
        FlexoraError: If it is not well formed.
    """
    return make_study(instantiated(study_parser(), ["--config", str(path)]))


def study_problems(study: Study, trials: Sequence[Trial], jobs: int = 1) -> Iterator[str]:
    """Yield what is wrong with the recipes that the trials make: each benchmark once, and each arm's settings once.

    Args:
        study: The study.
        trials: Those that are to be done.
        jobs: How many at a time.
    """
    seen: set[str] = set()
    benchmarks: set[str] = set()
    for trial in trials:
        arm = study.arms[trial.arm]
        searches = isinstance(arm.layers, Search | FromSearch)  # the latter may start from what the search trained
        phases: tuple[Phase, ...] = ("search", "finetune") if searches else ("finetune",)
        own = json.dumps([phases, arm.settings], sort_keys=True)
        if own in seen and trial.benchmark in benchmarks:
            continue
        seen.add(own)
        benchmarks.add(trial.benchmark)
        for problem in dict.fromkeys(_problems(study, trial, phases, jobs)):
            yield f"{trial.benchmark}, {trial.arm}: {problem}"


def _problems(study: Study, trial: Trial, phases: Sequence[Phase], jobs: int) -> Iterator[str]:
    settings: dict[str, Any] = study.settings_of(trial) | {"evaluate": {"arms": ["base"]}}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        try:
            recipe = Recipe("compare", ["--config", str(study.base_recipe(trial)), "--config", file.name])
        except FlexoraError as error:
            yield str(error)
            return
    if jobs > 1 and any(recipe.devices(phase) > 1 for phase in phases):
        yield "trainer.devices: with several jobs each has one device; set it to 1, or give --jobs 1"
    for check in checks(recipe, phases, trains=True):
        try:
            check()
        except FlexoraError as error:
            yield str(error)
