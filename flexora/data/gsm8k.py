"""GSM8K: grade-school mathematics in words (openai/gsm8k; MIT). Reported on the test split, exact match."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flexora.data.generative import GenerativeDataModule
from flexora.data.question import Pairs
from flexora.data.reading import Reader, Reading
from flexora.data.sources import Row, Source

if TYPE_CHECKING:
    from flexora.scoring.results import Metric

TEMPLATE = "Question: {stem}\nAnswer:"
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def _read(row: Row) -> Reading:
    question, answer = row["question"], row["answer"]
    if STRICT.search(answer) is None:
        raise ValueError("the answer does not end in #### and a number")
    pairs = Pairs(((TEMPLATE.format(stem=question), f" {answer}"),), 0, closed=True)
    return Reading(pairs, asked=question, said=f"{question}\n{answer}")


def _plain(number: str) -> str:
    """A number as the harness compares it: without what stands before ``####``, commas, dollars, and a last dot."""
    number = re.sub(r"(?s).*#### ", "", number.replace(",", "").replace("$", ""))
    return re.sub(r"\.$", "", number).lower()


class Gsm8k(GenerativeDataModule):
    """GSM8K: 7,473 train and 1,319 test rows.

    ``exact_match`` takes the number behind ``####``, ``flexible_match`` the last number of the answer: the harness's
    strict-match and flexible-extract. Its usual report has ``num_fewshot`` 5, which takes about a thousand tokens.

    Args:
        max_length: Longest sequence in tokens, with the answer.
        options: Settings of :class:`GenerativeDataModule`.
    """

    benchmark = Source(hub=("openai/gsm8k", "main"), fields=("question", "answer"), licence="MIT")
    reported_split = "test"
    primary_metric = "exact_match"
    metrics = ("exact_match", "flexible_match")
    template = TEMPLATE
    row_form = ("{question}", " {steps}\n#### {number}")
    stop = ("Question:", "</s>", "<|im_end|>")

    def __init__(self, *args: Any, max_length: int = 2048, **kwargs: Any) -> None:
        super().__init__(*args, max_length=max_length, **kwargs)

    def reader(self) -> Reader:
        """Reads a question and its worked answer."""
        return _read

    def matches(self, generated: str, answer: str) -> dict[Metric, bool]:
        """Strict and flexible match."""
        right = _plain(answer)
        strict = STRICT.search(generated)
        numbers = FLEXIBLE.findall(generated)
        last = next(filter(None, numbers[-1])) if numbers else ""
        return {
            "exact_match": strict is not None and _plain(strict.group(1)) == right,
            "flexible_match": bool(last) and _plain(last.strip()) == right,
        }
