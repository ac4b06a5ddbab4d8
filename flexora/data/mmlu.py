"""MMLU: 57 subjects of school and profession (cais/mmlu; MIT). Evaluation only, on the test split, acc."""

from __future__ import annotations

from functools import partial

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question, choices_of
from flexora.data.reading import Reader, Reading
from flexora.data.sources import Row, Source


def _with_subject(row: Row, read: Reader) -> Reading:
    if (subject := row.get("subject")) is None:
        raise ValueError("field subject is missing")
    title = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
    reading = read(row)
    return Reading(reading.pairs, reading.asked, reading.said, group=subject, description=title)


class Mmlu(MultipleChoiceDataModule):
    """MMLU: 14,042 test rows; ``num_fewshot`` 5 is the usual report.

    Solved examples are the first rows of the row's own subject in the dev split, which is all there is to train on.
    """

    benchmark = Source(
        hub=("cais/mmlu", "all"),
        fields=("question", "choices", "answer", "subject"),
        licence="MIT",
        hub_splits={"train": "dev"},
    )
    reported_split = "test"
    primary_metric = "acc"
    referee = "mmlu"
    referee_style = "letters"
    letters_template = "{stem}\n{options}\nAnswer:"
    trained = False
    drawn_examples = False

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row."""
        return Question(row["question"].strip(), choices_of(row["choices"]), row["answer"])

    def reader(self) -> Reader:
        """Reads a row with its subject."""
        return partial(_with_subject, read=super().reader())

    def new_reader(self) -> Reader:
        """Reads a new row, ``prompt``, ``choices`` and ``subject``, which has solved examples of its own."""
        return partial(_with_subject, read=super().new_reader())
