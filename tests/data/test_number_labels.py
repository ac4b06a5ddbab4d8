"""Labels of all rows that are numbers themselves: a row's number is one of them, or counts them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flexora.data.own import JsonlMultipleChoice


def right(answer: Any, labels: list[str], first: Any = None) -> int:
    """Which label an answer means."""
    data = JsonlMultipleChoice(choices=labels, first_answer=first)
    pairs = data.reader()({"prompt": "So?", "answer": answer}).pairs
    assert pairs is not None
    return pairs.answer


@pytest.mark.parametrize(
    ("answer", "labels", "first", "expected"),
    [
        (1, ["0", "1"], None, 1),
        (2, ["1", "2", "3"], 1, 1),
        (2, ["1", "2", "3"], 0, 2),
        ("2", ["1", "2", "3"], None, 1),
        (" 2", ["1", "2", "3"], None, 1),
        (1, ["10", "20"], None, 1),
    ],
    ids=["itself", "from 1", "from 0", "a text", "a text of a table", "none of them"],
)
def test_numbers_that_can_mean_one_label_alone(answer: Any, labels: list[str], first: Any, expected: int) -> None:
    assert right(answer, labels, first) == expected


@pytest.mark.parametrize(
    ("answer", "labels", "meant"),
    [
        (2, ["1", "2", "3"], "'3'"),
        (3, ["1", "2", "3"], "none"),
        (0, ["-1", "0", "1"], "'-1'"),
        (-1, ["-1", "0", "1"], "none"),
        (1, ["1", "0"], "'0'"),
    ],
)
def test_numbers_that_can_mean_two_labels_are_refused(answer: int, labels: list[str], meant: str) -> None:
    expected = f"answer {answer} is a label, but counted from 0 it means {meant}; set data.first_answer to 0 or 1"
    with pytest.raises(ValueError, match=re.escape(expected)):
        right(answer, labels)


def test_the_number_of_a_rows_own_choice_counts_them() -> None:
    row = {"prompt": "1 + 1?", "choices": ["3", "4", "2"], "answer": 2}
    pairs = JsonlMultipleChoice().reader()(row).pairs
    assert pairs is not None
    assert pairs.answer == 2
