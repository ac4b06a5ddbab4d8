"""The base of every multiple-choice benchmark: prompt styles, and what a question says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from flexora.data.datamodule import AnswerDataModule
from flexora.data.prompts import PromptStyle, completion, letters
from flexora.data.question import Pairs, PromptForm, Question, choices_of
from flexora.data.reading import Reader, Reading
from flexora.data.sources import Row


class MultipleChoiceDataModule(AnswerDataModule):
    """Rows of a multiple-choice benchmark.

    Args:
        prompt_style: ``completion``: every choice continues the question; ``letters``: the choices are listed, and the
            answer is a letter. By default what lm-evaluation-harness does with this benchmark. Training and evaluation
            share it.
        options: Settings of :class:`AnswerDataModule`.
    """

    metrics = ("acc", "acc_norm")
    #: The harness's name of the benchmark.
    referee: ClassVar[str | None] = None
    referee_style: ClassVar[PromptStyle] = "completion"
    template: str = "Question: {stem}\nAnswer:"
    letters_template: str = "Question: {stem}\n{options}\nAnswer:"
    #: What a row gives for ``{stem}``, with names in braces.
    stem_form: ClassVar[str] = "{question}"

    def __init__(self, *args: Any, prompt_style: PromptStyle | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompt_style: PromptStyle = prompt_style or self.referee_style

    @staticmethod
    @abstractmethod
    def question(row: Row) -> Question:
        """Turn a row with the benchmark's official fields into a question."""

    @staticmethod
    def complete(question: Question, template: str) -> Pairs:
        """Write a question in the completion style."""
        return completion(question, template)

    def reader(self) -> Reader:
        """Reads a row as a question, in the prompt style."""
        return partial(read_question, question=self.question, write=self.writer())

    def writer(self) -> Callable[[Question], Pairs]:
        """What writes a question in the prompt style."""
        if self.prompt_style == "letters":
            return partial(letters, template=self.letters_template)
        return partial(self.complete, template=self.template)

    def prompt_form(self) -> PromptForm:
        """How a question is written: of the choices one, or in the letters style the first two."""
        lettered = self.prompt_style == "letters"
        choices = ("{choice A}", "{choice B}") if lettered else ("{choice}", "{another choice}")
        context, answer = self.writer()(Question(self.stem_form, choices, 0)).pairs[0]
        return PromptForm(context, " {letter}" if lettered else answer, "letters" if lettered else "choices")

    def new_reader(self) -> Reader:
        """Reads a new row, ``prompt`` and ``choices``: the answer is what is asked for."""
        return partial(read_new_question, write=self.writer())


def read_new_question(row: Row, write: Callable[[Question], Pairs]) -> Reading:
    """What a row without an answer says."""
    for field in ("prompt", "choices"):
        if row.get(field) is None:
            raise ValueError(f"{field} is missing among {', '.join(row)}")
    question = Question(row["prompt"], choices_of(row["choices"]), 0)
    return Reading(write(question), asked=question.stem, said=question.stem)


def read_question(row: Row, question: Callable[[Row], Question], write: Callable[[Question], Pairs]) -> Reading:
    """What a multiple-choice row says."""
    asked = question(row)
    right = asked.choices[asked.answer]
    return Reading(write(asked), asked=asked.stem, said=f"{asked.stem}\n{right}")
