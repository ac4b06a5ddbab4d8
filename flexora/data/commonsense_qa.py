"""CommonsenseQA: five choices of common sense (tau/commonsense_qa; MIT). Reported on the validation split, acc."""

from __future__ import annotations

from flexora.data.labels import labelled, unlabelled
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


class CommonsenseQA(MultipleChoiceDataModule):
    """CommonsenseQA: 9,741 train and 1,221 validation rows; the harness lists the choices and asks for a letter."""

    benchmark = Source(
        hub=("tau/commonsense_qa",),
        fields=("question", "choices", "answerKey"),
        licence="MIT",
        packaged={"train": "csqa/train_rc_5shot", "validation": "csqa/val_rc_5shot"},
        official=unlabelled,
    )
    reported_split = "validation"
    primary_metric = "acc"
    referee = "commonsense_qa"
    referee_style = "letters"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row."""
        return Question(row["question"].strip(), tuple(row["choices"]["text"]), labelled(row))
