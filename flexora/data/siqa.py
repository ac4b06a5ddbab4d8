"""SIQA: what people do and feel (lighteval/siqa). Reported on the validation split, acc."""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


class Siqa(MultipleChoiceDataModule):
    """SIQA: 33,410 train and 1,954 validation rows."""

    benchmark = Source(
        hub=("lighteval/siqa",),
        fields=("context", "question", "answerA", "answerB", "answerC", "label"),
        packaged={"train": "socialiqa/train_rc_5shot", "validation": "socialiqa/val_rc_5shot"},
    )
    reported_split = "validation"
    primary_metric = "acc"
    referee = "social_iqa"
    template = "Q: {stem}\nA:"
    stem_form = "{context} {question}"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row; labels count from 1."""
        choices = (row["answerA"], row["answerB"], row["answerC"])
        return Question(f"{row['context']} {row['question']}", choices, int(row["label"]) - 1)
