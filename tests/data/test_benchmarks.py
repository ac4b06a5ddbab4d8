"""Every benchmark in both styles, to the letter, as lm-evaluation-harness publishes its templates."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from flexora.data.benchmarks import (
    MULTIPLE_CHOICE,
    ArcChallenge,
    ArcEasy,
    BoolQ,
    CommonsenseQA,
    HellaSwag,
    Mmlu,
    OpenBookQA,
    Piqa,
    RaceHigh,
    RaceMiddle,
    Siqa,
    WinoGrande,
)
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.prompts import PromptStyle
from flexora.data.reading import read_row


@dataclass(frozen=True)
class Golden:
    """A row, and what the model reads of it."""

    row: dict[str, Any]
    completion: tuple[tuple[str, str], ...]
    letters: tuple[str, tuple[str, ...]]
    answer: int


def labelled(labels: str, *texts: str) -> dict[str, Any]:
    return {"text": list(texts), "label": list(labels)}


KETTLE = "Question: Mira heats water in a kettle. What leaves the spout?\n"
ARC = Golden(
    {
        "id": "made-up-1",
        "question": "Mira heats water in a kettle. What leaves the spout?",
        "choices": labelled("123", "ice", "steam", "sand"),
        "answerKey": "2",
    },
    tuple((f"{KETTLE}Answer:", choice) for choice in (" ice", " steam", " sand")),
    (f"{KETTLE}A. ice\nB. steam\nC. sand\nAnswer:", (" A", " B", " C")),
    1,
)
ROWING = "Rowing: Two men carry a boat. They set it down. Then they"
RACE = Golden(
    {
        "example_id": "made-up-2.txt",
        "article": "Ida swims\nevery day.",
        "question": "Ida is a  _  .",
        "options": ["baker", "swimmer", "pilot", "singer"],
        "answer": "B",
    },
    tuple(
        ("Article: Ida swims\nevery day.\n\nIda is a  _  .", f" {option}")
        for option in ("baker", "swimmer", "pilot", "singer")
    ),
    (
        "Article: Ida swims\nevery day.\n\nIda is a  _  .\nA. baker\nB. swimmer\nC. pilot\nD. singer\nAnswer:",
        (" A", " B", " C", " D"),
    ),
    1,
)
GOLDEN: dict[type[MultipleChoiceDataModule], Golden] = {
    ArcEasy: ARC,
    ArcChallenge: ARC,
    OpenBookQA: Golden(
        {
            "question_stem": "A stone that is dropped",
            "choices": labelled("ABCD", "rises", "falls", "floats", "sings"),
            "answerKey": " B",
        },
        tuple(("A stone that is dropped", choice) for choice in (" rises", " falls", " floats", " sings")),
        (
            "Question: A stone that is dropped\nA. rises\nB. falls\nC. floats\nD. sings\nAnswer:",
            (" A", " B", " C", " D"),
        ),
        1,
    ),
    CommonsenseQA: Golden(
        {
            "question": " Where does one keep bread? ",
            "choices": labelled("ABCDE", "garage", "river", "kitchen", "roof", "cloud"),
            "answerKey": "C",
        },
        tuple(
            ("Question: Where does one keep bread?\nAnswer:", choice)
            for choice in (" garage", " river", " kitchen", " roof", " cloud")
        ),
        (
            "Question: Where does one keep bread?\nA. garage\nB. river\nC. kitchen\nD. roof\nE. cloud\nAnswer:",
            (" A", " B", " C", " D", " E"),
        ),
        2,
    ),
    Piqa: Golden(
        {"goal": "To cool tea,", "sol1": "add ice.", "sol2": "add {fire}.", "label": 0},
        (("Question: To cool tea,\nAnswer:", " add ice."), ("Question: To cool tea,\nAnswer:", " add {fire}.")),
        ("Question: To cool tea,\nA. add ice.\nB. add {fire}.\nAnswer:", (" A", " B")),
        0,
    ),
    Siqa: Golden(
        {
            "context": "Ola lent Per a pen.",
            "question": "How does Per feel?",
            "answerA": "thankful",
            "answerB": "hungry",
            "answerC": "tall",
            "label": "1",
        },
        tuple(
            ("Q: Ola lent Per a pen. How does Per feel?\nA:", choice) for choice in (" thankful", " hungry", " tall")
        ),
        (
            "Question: Ola lent Per a pen. How does Per feel?\nA. thankful\nB. hungry\nC. tall\nAnswer:",
            (" A", " B", " C"),
        ),
        0,
    ),
    BoolQ: Golden(
        {"passage": "Moss -- Moss is green.", "question": "is moss green", "label": 1, "idx": 3},
        (
            ("Moss -- Moss is green.\nQuestion: is moss green?\nAnswer:", " no"),
            ("Moss -- Moss is green.\nQuestion: is moss green?\nAnswer:", " yes"),
        ),
        ("Moss -- Moss is green.\nQuestion: is moss green?\nA. no\nB. yes\nAnswer:", (" A", " B")),
        1,
    ),
    HellaSwag: Golden(
        {
            "activity_label": "Rowing",
            "ctx_a": "[header] Two men carry a boat. [step] They set it down.",
            "ctx_b": "then THEY",
            "endings": ["row away [title] and", "[substeps] cook  soup", "sing", "sleep"],
            "label": "0",
        },
        tuple((ROWING, choice) for choice in (" row away. and", "  cook soup", " sing", " sleep")),
        (
            f"{ROWING}\nA. row away. and\nB.  cook soup\nC. sing\nD. sleep\nAnswer:",
            (" A", " B", " C", " D"),
        ),
        0,
    ),
    WinoGrande: Golden(
        {"sentence": "Ann fed Eve because _ was kind.", "option1": "Ann", "option2": "Eve", "answer": "1"},
        (("Ann fed Eve because Ann", " was kind."), ("Ann fed Eve because Eve", " was kind.")),
        ("Question: Ann fed Eve because _ was kind.\nA. Ann\nB. Eve\nAnswer:", (" A", " B")),
        0,
    ),
    RaceMiddle: RACE,
    RaceHigh: RACE,
    Mmlu: Golden(
        {"question": "What is 2 + 2? ", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "school_maths"},
        tuple(("Question: What is 2 + 2?\nAnswer:", choice) for choice in (" 3", " 4", " 5", " 6")),
        ("What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", (" A", " B", " C", " D")),
        1,
    ),
}


def test_every_benchmark_has_a_golden_row() -> None:
    assert set(GOLDEN) == set(MULTIPLE_CHOICE)


@pytest.mark.parametrize("style", ["completion", "letters", None])
@pytest.mark.parametrize("benchmark", MULTIPLE_CHOICE, ids=lambda benchmark: benchmark.__name__)
def test_golden_text(benchmark: type[MultipleChoiceDataModule], style: PromptStyle | None) -> None:
    golden = GOLDEN[benchmark]
    context, names = golden.letters
    expected = {"completion": golden.completion, "letters": tuple((context, name) for name in names)}
    data = benchmark(prompt_style=style)
    pairs = read_row(golden.row, benchmark.benchmark.fields, data.reader()).pairs
    referee = "letters" if benchmark in (CommonsenseQA, Mmlu) else "completion"
    assert pairs.pairs == expected[style or referee]
    assert pairs.answer == golden.answer
    assert not pairs.closed


@pytest.mark.parametrize("style", ["completion", "letters"])
@pytest.mark.parametrize("benchmark", MULTIPLE_CHOICE, ids=lambda benchmark: benchmark.__name__)
def test_the_form_of_a_prompt_is_that_of_its_rows(
    benchmark: type[MultipleChoiceDataModule], style: PromptStyle
) -> None:
    golden = GOLDEN[benchmark]
    form = benchmark(prompt_style=style).prompt_form()
    context = golden.letters[0] if style == "letters" else golden.completion[0][0]
    text = form.context.replace("B. {choice B}", "B. {choice B and others}")
    pattern = re.sub(r"\\{[^}]*\\}", "(?s:.+)", re.escape(text))
    assert re.fullmatch(pattern, context)
    assert form.asked == ("letters" if style == "letters" else "choices")


def test_mmlu_names_the_subject_before_its_own_examples() -> None:
    reading = read_row(GOLDEN[Mmlu].row, Mmlu.benchmark.fields, Mmlu().reader())
    assert reading.group == "school_maths"
    assert reading.description == "The following are multiple choice questions (with answers) about school maths."


@pytest.mark.parametrize(
    ("benchmark", "changes", "expected"),
    [
        (WinoGrande, {"sentence": "Ann fed Eve."}, r"no gap \(_\)"),
        (WinoGrande, {"answer": ""}, "invalid literal"),
        (Piqa, {"label": 2}, "answer 2 is out of range for 2 choices"),
        (Piqa, {"label": -1}, "answer -1 is out of range"),
        (Piqa, {"label": True}, "answer True is not the number of a choice"),
        (Piqa, {"label": "0"}, "answer '0' is not the number of a choice"),
        (Piqa, {"sol2": 3}, "choice 1 is 3, not text"),
        (Siqa, {"label": "4"}, "answer 3 is out of range"),
        (RaceHigh, {"answer": "Z"}, "substring not found"),
        (Mmlu, {"choices": ["one"]}, "at least two choices, this one has 1"),
        (Mmlu, {"question": 4}, "has no attribute"),
        (ArcEasy, {"question": 4}, "the question is 4, not text"),
        (Mmlu, {"choices": [str(number) for number in range(27)]}, "27 choices are more than there are letters"),
    ],
)
def test_rows_that_are_no_questions(
    benchmark: type[MultipleChoiceDataModule], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises((ValueError, AttributeError), match=expected):
        read_row(GOLDEN[benchmark].row | changes, benchmark.benchmark.fields, benchmark().reader())
