"""ARC: grade-school science questions (allenai/ai2_arc; CC-BY-SA-4.0). Reported on the test split, acc_norm."""

from __future__ import annotations

from flexora.data.labels import labelled, unlabelled
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source

FIELDS = ("question", "choices", "answerKey")


class ArcEasy(MultipleChoiceDataModule):
    """ARC-Easy: 2,251 train, 570 validation, 2,376 test rows."""

    benchmark = Source(
        hub=("allenai/ai2_arc", "ARC-Easy"),
        fields=FIELDS,
        licence="CC-BY-SA-4.0",
        packaged={
            "train": "arc_easy/train_rc_5shot",
            "validation": "arc_easy/val_rc_5shot",
            "test": "arc_easy/test_rc_5shot",
        },
        official=unlabelled,
    )
    reported_split = "test"
    primary_metric = "acc_norm"
    referee = "arc_easy"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row; choices have letters or numbers as labels."""
        return Question(row["question"], tuple(row["choices"]["text"]), labelled(row))


class ArcChallenge(ArcEasy):
    """ARC-Challenge: 1,119 train, 299 validation, 1,172 test rows."""

    benchmark = Source(
        hub=("allenai/ai2_arc", "ARC-Challenge"),
        fields=FIELDS,
        licence="CC-BY-SA-4.0",
        packaged={
            "train": "arc_challenge/train_rc_5shot",
            "validation": "arc_challenge/val_rc_5shot",
            "test": "arc_challenge/test_rc_5shot",
        },
        official=unlabelled,
    )
    referee = "arc_challenge"
