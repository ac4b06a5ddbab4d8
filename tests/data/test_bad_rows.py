"""Rows that cannot be used: counted, shown by their numbers, refused or skipped."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.rows import ROWS, data_of, refusal
from tests.tiny import write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")

GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "train.jsonl holds no row"),
        ("\n \n", "train.jsonl holds no row"),
        (f'{GOOD}\n\n{{"id": 1\n', r"1 of 2 rows cannot be used \(line 3: .*delimiter"),
        (f"{GOOD}\n{GOOD}\n[1, 2]\n", r"1 of 3 rows cannot be used \(line 3: not a JSON object\)"),
        ("null\n", r"1 of 1 rows cannot be used \(line 1: not a JSON object\)"),
        (f"{GOOD}\n\udcff\n", r"1 of 2 rows cannot be used \(line 2: .*codec can't decode"),
        ("[" * 9_999, r"\(line 1: nested too deeply\)"),
    ],
    ids=["empty", "blank", "malformed", "a list", "null", "not utf-8", "deep"],
)
def test_lines_that_are_no_rows(content: str, expected: str, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    (tmp_path / "train.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert re.search(expected, refusal(lambda: data_of(tmp_path, tiny_models["llama"]).rows("train")))


def test_a_field_of_several_types_spoils_nothing(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    rows: list[dict[str, Any]] = [ROWS[0] | {"id": 1}, ROWS[1] | {"id": "two"}, ROWS[2] | {"id": [3]}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    assert len(data_of(tmp_path, tiny_models["llama"]).rows("train")) == 3


def test_bad_rows_are_counted_shown_and_skipped_on_request(
    tmp_path: Path, tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = copy.deepcopy(ROWS)
    for index in (1, 2, 4, 5):
        rows[index]["answerKey"] = "Z"
    write_jsonl(tmp_path / "train.jsonl", rows)
    found = re.compile(
        rf"data: ArcEasy {tmp_path} \[train\]: 4 of 6 rows cannot be used "
        r"\(line 2: answerKey 'Z' .*; line 3: .*; line 5: [^;]*; and 1 more\)"
    )
    message = refusal(lambda: data_of(tmp_path, tiny_models["llama"]).rows("train"))
    assert found.match(message)
    assert message.endswith("mend or remove them, or set data.bad_rows to skip")
    kept = data_of(tmp_path, tiny_models["llama"], bad_rows="skip").rows("train")
    assert kept["line"] == [1, 4]
    assert found.search(capsys.readouterr().err)
    write_jsonl(tmp_path / "train.jsonl", [rows[1]])
    assert "1 of 1 rows" in refusal(lambda: data_of(tmp_path, tiny_models["llama"], bad_rows="skip").rows("train"))


def without(*path: Any) -> Callable[[dict[str, Any]], object]:
    def change(row: dict[str, Any]) -> None:
        for key in path[:-1]:
            row = row[key]
        del row[path[-1]]

    return change


def replaced(value: Any, *path: Any) -> Callable[[dict[str, Any]], object]:
    def change(row: dict[str, Any]) -> None:
        for key in path[:-1]:
            row = row[key]
        row[path[-1]] = value

    return change


@pytest.mark.parametrize("spoilt", [[3], range(6)], ids=["one row", "all rows"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("question"), "question"),
        (without("answerKey"), ""),
        (without("choices"), ""),
        (without("choices", "text"), "text"),
        (replaced(None, "question"), "question"),
        (replaced("Z", "answerKey"), "Z"),
        (replaced("", "choices", "text", 1), "choice 1 is empty"),
        (replaced("  ", "choices", "text", 2), "choice 2 is empty"),
        (replaced(None, "choices", "text", 1), ""),
        (replaced("x", "choices"), ""),
        (replaced({"text": ["x", "y"], "label": []}, "choices"), "none of the labels"),
        (replaced("long " * 40, "choices", "text", 0), "choice 0 has 201 tokens, which max_length 128 cannot hold"),
    ],
    ids=[
        "no question",
        "no answerKey",
        "no choices",
        "no text",
        "null question",
        "unknown key",
        "empty choice",
        "blank choice",
        "null choice",
        "choices are text",
        "no labels",
        "long answer",
    ],
)
def test_rows_that_cannot_be_used_are_named(
    change: Callable[[dict[str, Any]], object],
    expected: str,
    spoilt: range | list[int],
    tmp_path: Path,
    tiny_models: dict[str, Path],
) -> None:
    rows = copy.deepcopy(ROWS)
    for index in spoilt:
        change(rows[index])
    write_jsonl(tmp_path / "train.jsonl", rows)
    message = refusal(lambda: data_of(tmp_path, tiny_models["llama"]).rows("train"))
    assert f"ArcEasy {tmp_path} [train]: {len(spoilt)} of 6 rows cannot be used (line {spoilt[0] + 1}: " in message
    assert expected in message.split("(line ", 1)[1]
