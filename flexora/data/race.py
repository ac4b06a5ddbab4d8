"""RACE: reading comprehension of English exams (ehovy/race; for research only). Reported on the test split, acc.

Every question of an article is scored by itself. The harness scores the last question of each article alone, with the
others solved before it: its number is another one.
"""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question, choices_of
from flexora.data.sources import Row, Source

FIELDS = ("article", "question", "options", "answer")


class RaceMiddle(MultipleChoiceDataModule):
    """RACE-middle: 25,421 train, 1,436 validation, 1,436 test rows."""

    benchmark = Source(hub=("ehovy/race", "middle"), fields=FIELDS, licence="for research only")
    reported_split = "test"
    primary_metric = "acc"
    template = "{stem}"
    letters_template = "{stem}\n{options}\nAnswer:"
    stem_form = "Article: {article}\n\n{question}"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row: an article, one question on it, and the options A, B, C, ..."""
        stem = f"Article: {row['article']}\n\n{row['question']}"
        return Question(stem, choices_of(row["options"]), "ABCDEFGHIJ".index(row["answer"]))


class RaceHigh(RaceMiddle):
    """RACE-high: 62,445 train, 3,451 validation, 3,498 test rows."""

    benchmark = Source(hub=("ehovy/race", "high"), fields=FIELDS, licence="for research only")
