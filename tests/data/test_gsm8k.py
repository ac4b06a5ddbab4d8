"""GSM8K: prompt and matches, as lm-evaluation-harness has them."""

from __future__ import annotations

import pytest

from flexora.data.gsm8k import Gsm8k
from flexora.data.reading import read_row
from flexora.errors import FlexoraError

ANSWER = "Two and two is <<2+2=4>>4.\n#### 1,004"


def test_golden_text() -> None:
    row = {"question": "How many?", "answer": ANSWER}
    pairs = read_row(row, Gsm8k.benchmark.fields, Gsm8k().reader()).pairs
    assert pairs is not None
    assert pairs.pairs == (("Question: How many?\nAnswer:", f" {ANSWER}"),)
    assert pairs.closed


@pytest.mark.parametrize(
    ("generated", "strict", "flexible"),
    [
        (" It is 1004.\n#### 1004", True, True),
        (" #### 1,004.", True, True),
        (" #### 1004\nThat is 7 more", True, False),
        (" so $1,004 in all", False, True),
        (" the answer is 1004.", False, True),
        (" #### 1003", False, False),
        (" ####1004", False, True),
        (" I do not know", False, False),
        ("", False, False),
        (" #### -1004", False, False),
    ],
)
def test_matches(generated: str, strict: bool, flexible: bool) -> None:
    assert Gsm8k().matches(generated, f" {ANSWER}") == {"exact_match": strict, "flexible_match": flexible}


def test_an_answer_without_a_number_is_no_row() -> None:
    with pytest.raises(ValueError, match="does not end in #### and a number"):
        read_row({"question": "?", "answer": "four"}, Gsm8k.benchmark.fields, Gsm8k().reader())


def test_there_is_room_for_the_usual_report() -> None:
    assert Gsm8k().max_length == 2048
    with pytest.raises(
        FlexoraError, match=r"data\.max_new_tokens: 256 leaves no room for a prompt in data\.max_length"
    ):
        Gsm8k(max_length=200).check_source()
