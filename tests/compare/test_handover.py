"""``--finished`` with what does not fit: refused in one line before anything is written, and the study goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import start_command
from tests.compare.conftest import Elsewhere, Lines
from tests.reliability.holding import Hold


def copied(line: dict[str, Any]) -> dict[str, Any]:
    """A deep copy."""
    copy: dict[str, Any] = json.loads(json.dumps(line))
    return copy


def of_another_search(line: dict[str, Any]) -> dict[str, Any]:
    """The line of a search that has chosen one layer alone."""
    line = copied(line)
    layer = str(line["selection"]["layers"][-1])
    line["selection"] |= {"layers": [int(layer)], "targets": {layer: ["q_proj"]}}
    return line


def at_another_rate(line: dict[str, Any]) -> dict[str, Any]:
    """The line of a tuning that has found another learning rate."""
    line = copied(line)
    line["row"]["learning_rate"] = 0.02
    return line


@pytest.mark.parametrize(
    ("changed", "change", "trial", "difference"),
    [
        ("tiny/flexora/0", of_another_search, "tiny/warm/0", "tiny/flexora/0 layers.targets."),
        ("tiny/lora/0", at_another_rate, "tiny/flexora/0", "tiny/lora/0 learning rate 0.0"),
    ],
)
def test_what_trials_took_from_others_must_be_what_these_give(
    changed: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    trial: str,
    difference: str,
    lines: Lines,
    elsewhere: Elsewhere,
) -> None:
    other = change(lines[changed])
    # Both from the file.
    said = elsewhere.refuses(*({**lines, changed: other}).values())
    assert f"compare: finished: {trial} of {elsewhere.file} took something else" in said
    assert difference in said
    # What gives is here.
    status, said = elsewhere.take(lines["tiny/base/0"], other)
    assert (status, "2 trials taken over" in said) == (0, True), said
    said = elsewhere.refuses(*lines.values())
    assert f"compare: finished: {trial} of {elsewhere.file} took something else" in said
    assert difference in said
    # What took is here, and is what stays where the other is made again.
    shutil.rmtree(elsewhere.root)
    assert elsewhere.take(*lines.values())[0] == 0
    shutil.rmtree(elsewhere.root / "trials" / changed)
    said = elsewhere.refuses(lines["tiny/base/0"], other)
    assert f"compare: finished: {elsewhere.root / 'trials' / trial} took something else" in said
    assert difference in said
    assert elsewhere.take(*lines.values())[0] == 0


def test_a_search_that_was_begun_here_is_not_mixed_with_another(lines: Lines, elsewhere: Elsewhere) -> None:
    assert elsewhere.take(*lines.values())[0] == 0
    for trial in ("flexora", "warm"):
        (elsewhere.root / "trials" / "tiny" / trial / "0" / "row.json").unlink()
    folder = elsewhere.root / "trials" / "tiny" / "flexora" / "0"
    said = elsewhere.refuses(lines["tiny/base/0"], of_another_search(lines["tiny/flexora/0"]))
    assert f"another selection than {folder / 'search' / 'selection.json'}" in said
    assert "2 trials taken over" in elsewhere.take(*lines.values())[1]


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (("row", "arm"), "LoRA", "row.arm LoRA in the place of warm"),
        (("row", "benchmark"), "Other", "row.benchmark Other in the place of Tiny"),
        (("row", "seed"), 1, "row.seed 1 in the place of 0"),
        (("row", "seed"), None, "row.seed None in the place of 0"),
        (("row", "draw"), 1, "row.draw 1 in the place of 0"),
        (("outcomes", 1, "arm"), "two\nlines", "outcomes.1.arm two lines in the place of warm"),
        (("outcomes", 0, "rows"), 12, "outcomes.0.rows 12 in the place of 13"),
        (("results", "rows"), 12, "results.rows 12 in the place of 13"),
        (("selection",), None, "has no layers"),
        (("made_with", "recipe"), "two\nlines", "was made with other settings (recipe two lines -> "),
        (("made_with", "taken"), [1], "took something else from the trials that it needs (taken [1] -> "),
    ],
)
def test_a_line_must_be_that_of_its_trial(
    part: tuple[Any, ...], value: Any, said: str, lines: Lines, elsewhere: Elsewhere
) -> None:
    place: Any = lines["tiny/warm/0"]
    for name in part[:-1]:
        place = place[name]
    place[part[-1]] = value
    assert f"compare: finished: tiny/warm/0 of {elsewhere.file} " in (refused := elsewhere.refuses(*lines.values()))
    assert said in refused


@pytest.mark.parametrize("right", ["00", "000000", "00zz", "00 0"])
def test_outcomes_are_one_bit_a_row(right: str, lines: Lines, elsewhere: Elsewhere) -> None:
    lines["tiny/lora/0"]["outcomes"][0]["right"] = right
    said = elsewhere.refuses(*lines.values())
    assert "line 2: outcomes.0.right: Value error, is not one bit for each of 13 rows" in said


def test_the_base_model_has_neither_seed_nor_layers(lines: Lines, elsewhere: Elsewhere) -> None:
    base = lines["tiny/base/0"]
    assert "row.seed 0 in the place of None" in elsewhere.refuses(base | {"row": base["row"] | {"seed": 0}})
    assert "is the base model" in elsewhere.refuses(base | {"selection": lines["tiny/warm/0"]["selection"]})


@pytest.mark.parametrize(
    ("in_row", "in_results", "said"),
    [
        ({"metric": "acc"}, {"primary_metric": "acc"}, "metric acc_norm -> acc"),
        ({"split": "development"}, {"split": "development"}, "split test -> development"),
        ({"rows": 12}, {"rows": 12}, "rows 13 -> 12"),
        ({}, {"split_rows": 99}, "split_rows 13 -> 99"),
        ({}, {"model": "org/other"}, "/llama -> org/other"),
    ],
)
def test_trials_of_a_benchmark_were_scored_alike(
    in_row: dict[str, Any], in_results: dict[str, Any], said: str, lines: Lines, elsewhere: Elsewhere
) -> None:
    other = copied(lines["tiny/lora/0"])
    other["row"] |= in_row
    other["results"] |= in_results
    for outcome in other["outcomes"]:
        outcome["rows"] = other["row"]["rows"]
    refused = elsewhere.refuses(lines["tiny/base/0"], other)
    assert "finished: tiny/base/0 and tiny/lora/0 of " in refused
    assert said in refused
    assert elsewhere.take(lines["tiny/base/0"])[0] == 0
    refused = elsewhere.refuses(other)
    assert "finished: tiny/base/0 here and tiny/lora/0 of " in refused
    assert said in refused


def test_a_trial_at_work_is_not_written_into(lines: Lines, elsewhere: Elsewhere, tmp_path: Path) -> None:
    printed, hold = tmp_path / "printed.txt", Hold(tmp_path / "held", "flexora.compare.schedule._call", at=1)
    work = start_command([*elsewhere.command, "--only", "tiny/lora/0"], printed, prepare=hold)
    hold.wait_until_reached([work], printed)
    assert "another process works at tiny/lora/0" in elsewhere.refuses(*lines.values())
    work.kill()
    work.join()
    status, said = elsewhere.take(*lines.values())
    assert (status, "4 trials taken over" in said) == (0, True), said


def test_a_trial_that_stands_there_twice(lines: Lines, elsewhere: Elsewhere) -> None:
    other = copied(lines["tiny/lora/0"])
    other["row"]["score"] += 0.01
    assert "line 5: tiny/lora/0 stands there twice, and not the same" in elsewhere.refuses(*lines.values(), other)
    assert "4 trials taken over" in elsewhere.take(*lines.values(), *lines.values())[1]
