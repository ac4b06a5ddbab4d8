"""Fields that are read from columns with names of their own, or put together from several."""

from __future__ import annotations

from typing import Any

import pytest

from flexora.data.columns import Columns, pick, renamed
from flexora.data.own import JsonlInstruction
from flexora.errors import FlexoraError


def test_new_rows_have_the_columns_names_or_the_fields() -> None:
    columns: Columns = {"prompt": ["instruction", "input"], "response": "output"}
    asked = {"instruction": "Sum up.", "input": "A tale."}
    assert renamed(asked, columns)["prompt"] == "Sum up.\n\nA tale."
    assert renamed({"prompt": "Sum up."}, columns) == {"prompt": "Sum up."}


@pytest.mark.parametrize("answer", [None, "", 7])
def test_a_new_rows_answer_is_not_read(answer: Any) -> None:
    """Tables have a column for it, which is empty until it is known."""
    row = {"ask": "Which?", "said": answer}
    assert renamed(row, {"prompt": "ask", "response": "said"})["prompt"] == "Which?"
    assert renamed(row, {"prompt": "ask", "answer": "said"})["prompt"] == "Which?"


@pytest.mark.parametrize(
    ("row", "field", "columns", "expected"),
    [
        ({"a": "one"}, "prompt", ["a", "b"], "one"),
        ({"a": "", "b": "two", "c": " "}, "prompt", ["a", "b", "c"], "two"),
        ({"a": "one", "b": "two", "c": None}, "choices", ["a", "b", "c"], ["one", "two"]),
        ({"a": ["x"]}, "choices", "a", ["x"]),
    ],
    ids=["left out", "blank", "choices", "one column"],
)
def test_fields_of_several_columns(row: dict[str, Any], field: str, columns: Any, expected: Any) -> None:
    assert pick(row, field, {field: columns}) == expected


def test_a_gap_among_choices_is_refused() -> None:
    """The letters and numbers of those behind it would be wrong."""
    with pytest.raises(ValueError, match="the choices of columns a, b, c have a gap"):
        pick({"a": "one", "b": "", "c": "three"}, "choices", {"choices": ["a", "b", "c"]})


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"b": "two"}, ["a", "b"], r"column a is missing among b; map it with data\.columns\.prompt"),
        ({"a": None, "b": "two"}, ["a", "b"], "column a holds nothing"),
        ({"a": "one", "b": 2}, ["a", "b"], "column b is 2, not text"),
    ],
)
def test_columns_that_do_not_go_together(row: dict[str, Any], columns: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        pick(row, "prompt", {"prompt": columns})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"columns": {"prompt": "x"}, "messages": True}, "prompt: x names no column of one of messages"),
        ({"columns": {"messages": ["a", "b"]}, "messages": True}, r"\['a', 'b'\] are several; name one column"),
        ({"columns": {"prompt": []}}, r"prompt: \[\] names no column"),
    ],
)
def test_mappings_that_mean_nothing(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(FlexoraError, match=rf"data\.columns: .*{expected}"):
        JsonlInstruction(**settings)
