"""The base of data whose answers the model writes itself: one pair a row, and greedy generation to compare with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flexora.data.batching import MicroBatch, length_batches
from flexora.data.chat import end_of_turn
from flexora.data.datamodule import AnswerDataModule, loader
from flexora.data.question import Pairs, PromptForm
from flexora.data.reading import Reader, Reading
from flexora.data.sources import Row
from flexora.errors import FlexoraError, require_at_least

if TYPE_CHECKING:
    from datasets import Dataset

    from flexora.scoring.results import Metric


#: Stands for an answer that is not known.
UNKNOWN = " ?"
#: Tokens that are written in one batch, prompts included, for each one of ``evaluate_tokens``.
WRITTEN = 8


class PromptBatch(TypedDict):
    """Prompts to be answered.

    Attributes:
        prompts: Token ids of each prompt.
        rows: Index of each row in its dataset, ``[rows]``.
    """

    prompts: list[list[int]]
    rows: Tensor


class GenerativeDataModule(AnswerDataModule):
    """Rows with one answer in free text.

    Answers are generated for eight times ``evaluate_tokens`` at a time, prompts and the room for their answers
    included (16,384 by default: a dozen GSM8K prompts with five examples, where ``evaluate_tokens`` alone would hold
    one). Each step reads all weights for one token of each row, so that rows are nearly free, and the language-model
    head, which decides how many tokens a forward pass with a loss can have, runs on that one token alone.

    Args:
        max_new_tokens: Longest generated answer, in tokens.
        options: Settings of :class:`AnswerDataModule`.
    """

    #: The context of an answer, with a place for ``{stem}``.
    template: str = "{stem}"
    #: What a row gives for ``{stem}``, and what follows the template, with names in braces.
    row_form: ClassVar[tuple[str, str]] = ("{question}", " {answer}")
    #: Texts that end a generated answer.
    stop: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, max_new_tokens: int = 256, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "choices" in (self.objective, self.validation_objective):
            raise FlexoraError("data.objective: choices needs rows with choices; leave it at answer")
        require_at_least(1, "data", {"max_new_tokens": max_new_tokens})
        self.max_new_tokens = max_new_tokens

    def prompt_form(self) -> PromptForm:
        """How a row is written."""
        stem, answer = self.row_form
        return PromptForm(self.template.format(stem=stem), answer, "text")

    def new_reader(self) -> Reader:
        """Reads a new row, ``prompt``: the answer is what is asked for."""
        return partial(read_new_prompt, template=self.template)

    @abstractmethod
    def matches(self, generated: str, answer: str) -> dict[Metric, bool]:
        """Whether a generated answer is right, by each metric."""

    @property
    def generates(self) -> bool:
        """Whether the evaluation asks for generated answers."""
        return True

    @property
    def room(self) -> int:
        """Tokens that a reported prompt leaves to the generated answer; 0 where none is generated."""
        return self.answer_room if self.generates else 0

    @property
    def answer_room(self) -> int:
        """Tokens that a prompt leaves to an answer.

        Raises:
            FlexoraError: If it would leave none for the prompt.
        """
        if self.max_new_tokens >= self.max_length:
            raise FlexoraError(
                f"data.max_new_tokens: {self.max_new_tokens} leaves no room for a prompt in data.max_length "
                f"{self.max_length}; lower the first or raise the second"
            )
        return self.max_new_tokens

    def check_source(self) -> None:
        """Find out without loading a row whether the rows can be read and answered."""
        super().check_source()
        _ = self.room

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a generated answer, with what ends a turn of the chat template."""
        turn = end_of_turn(self.tokenizer) if self.chat_template else ""
        return (*self.stop, turn) if turn and turn != self.tokenizer.eos_token else self.stop

    def test_dataloader(self) -> Any:
        """The reported rows with their answers, and their prompts to be answered."""
        answers = super().test_dataloader()
        return [answers, self.prompt_loader(self.reported_set)] if self.generates else answers

    def prompt_loader(self, data: Dataset) -> DataLoader[PromptBatch]:
        """A loader of prompts, the longest first."""
        lengths = [starts[0] + self.max_new_tokens for starts in data["starts"]]
        batches = length_batches(lengths, max_tokens=WRITTEN * self.evaluate_tokens)
        return loader(Prompts(data), self.share.of(batches))

    @cached_property
    def answers(self) -> list[str]:
        """Right answers of the reported rows, as text that ends where a generated one does."""
        rows = self.reported_set
        answers = [ids[0][starts[0] :] for ids, starts in zip(rows["sequences"], rows["starts"], strict=True)]
        return [until(text, self.stops) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def until(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops in it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def read_new_prompt(row: Row, template: str) -> Reading:
    """What a row without an answer says; something must stand in the answer's place."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {'missing among ' + ', '.join(row) if prompt is None else 'not text'}")
    return Reading(Pairs(((template.format(stem=prompt), UNKNOWN),), 0, closed=True), asked=prompt, said=prompt)


class Prompts(torch.utils.data.Dataset[Any]):
    """Prompts of encoded rows, fetched as ready batches."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> list[int]:
        encoded = self.data[row]
        prompt: list[int] = encoded["sequences"][0][: encoded["starts"][0]]
        return prompt

    def __getitems__(self, batch: MicroBatch) -> PromptBatch:
        """The prompts of one batch."""
        return PromptBatch(prompts=[self[row] for row in batch.rows], rows=torch.tensor(batch.rows))
