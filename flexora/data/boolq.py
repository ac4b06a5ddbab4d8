"""BoolQ: yes or no, from a passage (SuperGLUE's form; CC-BY-SA-3.0). Reported on the validation split, acc."""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


def _official(document: Row) -> Row:
    """Take passage and question out of the finished query again; the packaged choices are yes and no."""
    passage, _, question = document["query"].removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
    right = document["choices"][document["gold"]]
    return {"passage": passage, "question": question, "label": ["no", "yes"].index(right)}


class BoolQ(MultipleChoiceDataModule):
    """BoolQ: 9,427 train and 3,270 validation rows; passages begin with their title, as in the harness."""

    benchmark = Source(
        hub=("aps/super_glue", "boolq"),
        fields=("passage", "question", "label"),
        licence="CC-BY-SA-3.0",
        packaged={"train": "boolq/train_rc_5shot", "validation": "boolq/val_rc_5shot"},
        official=_official,
    )
    reported_split = "validation"
    primary_metric = "acc"
    referee = "boolq"
    template = "{stem}\nAnswer:"
    letters_template = "{stem}\n{options}\nAnswer:"
    stem_form = "{passage}\nQuestion: {question}?"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row; label 1 is yes."""
        return Question(f"{row['passage']}\nQuestion: {row['question']}?", ("no", "yes"), row["label"])
