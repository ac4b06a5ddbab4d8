"""OpenBookQA: facts of science and common sense (allenai/openbookqa). Reported on the test split, acc_norm."""

from __future__ import annotations

from functools import partial

from flexora.data.labels import labelled, unlabelled
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


class OpenBookQA(MultipleChoiceDataModule):
    """OpenBookQA: 4,957 train, 500 validation, 500 test rows; the question alone is the prompt."""

    benchmark = Source(
        hub=("allenai/openbookqa", "main"),
        fields=("question_stem", "choices", "answerKey"),
        packaged={
            "train": "openbookqa/train_rc_5shot",
            "validation": "openbookqa/val_rc_5shot",
            "test": "openbookqa/test_rc_5shot",
        },
        official=partial(unlabelled, question_field="question_stem"),
    )
    reported_split = "test"
    primary_metric = "acc_norm"
    referee = "openbookqa"
    template = "{stem}"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row."""
        return Question(row["question_stem"], tuple(row["choices"]["text"]), labelled(row))
