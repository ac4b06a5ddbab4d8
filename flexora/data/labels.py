"""Choices with labels of their own, as ARC, OpenBookQA and CommonsenseQA publish them."""

from __future__ import annotations

from string import ascii_uppercase

from flexora.data.sources import Row


def labelled(row: Row) -> int:
    """Index of the right choice, whose label is the row's ``answerKey``.

    Raises:
        ValueError: If no choice has that label.
    """
    labels, key = row["choices"]["label"], row["answerKey"].lstrip()  # OpenBookQA has keys that begin with a space
    if key not in labels:
        raise ValueError(f"answerKey {key!r} is none of the labels {', '.join(labels)}")
    return int(labels.index(key))


def unlabelled(document: Row, question_field: str = "question") -> Row:
    """A packaged document, which holds the finished query, as a row with labelled choices."""
    choices = document["choices"]
    return {
        "id": document["id"],
        question_field: document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": choices, "label": list(ascii_uppercase[: len(choices)])},
        "answerKey": ascii_uppercase[document["gold"]],
    }
