"""The results folder of a study: rows of all finished trials, and what its report needs beside them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from flexora.compare.decisive import without_secrets_inside, without_trainer
from flexora.compare.handover import write_finished
from flexora.compare.kept import chosen_by, is_done, outcomes, read_row
from flexora.compare.report import write_study_report
from flexora.compare.rows import Outcome, ResultRow, write_lines
from flexora.compare.study import Study
from flexora.scoring.results import Results
from flexora.search.result import PACKAGES


def write_rows(study: Study) -> None:
    """Write ``results.csv``, ``outcomes.csv`` and ``trials.jsonl``: the finished trials, in the study's order."""
    found = [(trial, row) for trial in study.trials if is_done(study, trial) and (row := read_row(study, trial))]
    order = {name: place for place, name in enumerate(study.recipes)}
    found.sort(key=lambda pair: order[pair[0].benchmark])
    write_finished(study, [trial for trial, _ in found], study.results / "trials.jsonl")
    write_lines(study.results / "results.csv", [row for _, row in found], ResultRow)
    answered = [out for trial, row in found for out in outcomes(study, trial)]
    write_lines(study.results / "outcomes.csv", answered, Outcome)


def write_results(study: Study) -> None:
    """Write rows, ``study.json``, table, pictures and page."""
    write_rows(study)
    done = [trial for trial in study.trials if is_done(study, trial)]
    adapted = [trial for trial in done if not study.is_base(trial.arm)]
    split_rows = {trial.benchmark: Results.read(study.run_folder(trial).results).split_rows for trial in done}
    write_study_report(
        study.results,
        study.reference,
        study.title or None,
        settings=_settings(study),
        arms=list(study.arms),
        split_rows=split_rows,
        num_layers=chosen_by(study, adapted[0]).num_layers if adapted else None,
    )


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the report shows them, which others read: a logger may have a key."""
    shown: dict[str, Any] = without_secrets_inside(without_trainer(settings, ["logger"]))
    return shown


def _settings(study: Study) -> dict[str, Any]:
    """What was run with what; machine and versions are those of the last call."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return {
        "recipes": study.recipes,
        "settings": _shown(study.settings),
        "seeds": study.seeds,
        "rows drawn anew for each seed": study.resample,
        "arms": {
            name: {"layers": arm.layers.describe(), "settings": _shown(arm.settings)}
            | ({"learning_rates": arm.learning_rates} if arm.learning_rates else {})
            | ({"learning_rate_of": arm.learning_rate_of} if arm.learning_rate_of else {})
            for name, arm in study.arms.items()
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
        "versions": {name: version(name) for name in PACKAGES},
    }
