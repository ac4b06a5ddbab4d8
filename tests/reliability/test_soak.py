"""A long search: its memory stays what it was. ``FLEXORA_SOAK`` steps; ``make test-reliability`` does 2,000."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from flexora.search.module import SearchModule
from tests.commands import start_command

STEPS = int(os.environ.get("FLEXORA_SOAK", "200"))

#: Of the second quarter's mean, by which the last one's may differ. The history alone grows, by a line a step.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Meter:
    """Writes down, after every outer step, how much memory of the process is resident."""

    file: Path

    def __call__(self) -> None:
        step, process = SearchModule.training_step, psutil.Process()

        def measured(*arguments: Any) -> None:
            step(*arguments)
            with self.file.open("a") as file:
                file.write(f"{process.memory_info().rss}\n")

        SearchModule.training_step = measured  # type: ignore[method-assign]


def test_the_memory_of_a_long_search_is_flat(recipe: Callable[..., Path], tmp_path: Path) -> None:
    printed, file = tmp_path / "printed.txt", tmp_path / "resident.txt"
    settings = {"outer_steps": STEPS, "accumulate": 1, "checkpoint_every": 10, "check_every": 20}
    command = ["search", "--config", str(recipe()), *(f"--search.{name}={value}" for name, value in settings.items())]
    process = start_command(command, printed, prepare=Meter(file))
    process.join()
    assert process.exitcode == 0, printed.read_text()
    resident = [int(line) for line in file.read_text().splitlines()]
    assert len(resident) == STEPS
    quarters = [mean(resident[part * STEPS // 4 : (part + 1) * STEPS // 4]) for part in range(4)]
    print(f"resident, MB, mean of each quarter: {', '.join(f'{quarter / 1e6:,.1f}' for quarter in quarters)}")
    assert abs(quarters[3] / quarters[1] - 1) < TOLERANCE, quarters
