"""ARC: grade-school science questions (allenai/ai2_arc; CC-BY-SA-4.0). Reported on the test split, acc_norm."""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


def _official(document: Row) -> Row:
    """The packaged rows hold the finished query; take the question out of it again."""
    labels = [chr(ord("A") + index) for index in range(len(document["choices"]))]
    return {
        "id": document["id"],
        "question": document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": document["choices"], "label": labels},
        "answerKey": labels[document["gold"]],
    }


class ArcEasy(MultipleChoiceDataModule):
    """ARC-Easy: 2,251 train, 570 validation, 2,376 test rows."""

    benchmark = Source(
        hub=("allenai/ai2_arc", "ARC-Easy"),
        fields=("question", "choices", "answerKey"),
        packaged={
            "train": "arc_easy/train_rc_5shot",
            "validation": "arc_easy/val_rc_5shot",
            "test": "arc_easy/test_rc_5shot",
        },
        official=_official,
    )
    reported_split = "test"
    primary_metric = "acc_norm"

    @staticmethod
    def question(row: Row) -> Question:
        """Write a row as lm-evaluation-harness does: question and ``Answer:`` on two lines, then the choice."""
        context = f"Question: {row['question']}\nAnswer:"
        choices = row["choices"]
        if row["answerKey"] not in choices["label"]:
            raise ValueError(f"answerKey {row['answerKey']!r} is none of the labels {', '.join(choices['label'])}")
        return Question.with_choices(context, choices["text"], choices["label"].index(row["answerKey"]))
