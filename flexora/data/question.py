"""What a benchmark row says, and what the model reads of it: pairs of context and continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Question:
    """One multiple-choice question, whatever the style of its prompt.

    Attributes:
        stem: What is asked, without the words around it.
        choices: The possible answers.
        answer: Index of the right one.
    """

    stem: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not isinstance(self.stem, str):
            raise ValueError(f"the question is {self.stem!r}, not text")
        if len(self.choices) < 2:
            raise ValueError(f"a question needs at least two choices, this one has {len(self.choices)}")
        for index, choice in enumerate(self.choices):
            if not isinstance(choice, str):  # a reader's None would be scored as the word "None"
                raise ValueError(f"choice {index} is {choice!r}, not text")
            if not choice.strip():
                raise ValueError(f"choice {index} is empty")
        if isinstance(self.answer, bool) or not isinstance(self.answer, int):
            raise ValueError(f"answer {self.answer!r} is not the number of a choice")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} is out of range for {len(self.choices)} choices")


def choices_of(value: object) -> tuple[str, ...]:
    """A row's list of choices.

    Raises:
        ValueError: If it is none: the letters of a text and the keys of a mapping are no choices.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"choices is {type(value).__name__}, not a list of texts")
    return tuple(value)


@dataclass(frozen=True)
class PromptForm:
    """How a row is written, with names in braces for what it says.

    Attributes:
        context: What the model reads.
        answer: What it scores or writes behind that.
        asked: Which of the choices makes the answer likeliest, which letter it is, or what text.
    """

    context: str
    answer: str
    asked: Literal["choices", "letters", "text"]


@dataclass(frozen=True)
class Pairs:
    """What a causal language model reads of a row.

    Shared prompts (ARC: one context, several continuations), partial evaluation (WinoGrande: several contexts, one
    continuation) and free answers (GSM8K: one pair) are all lists of pairs.

    Attributes:
        pairs: ``(context, continuation)`` for each choice; the model scores the continuation alone.
        answer: Index of the right pair.
        closed: Whether the model writes the answer itself: it ends with the end-of-text token, to teach it to stop.
        templated: Whether a chat template has written the contexts.
    """

    pairs: tuple[tuple[str, str], ...]
    answer: int
    closed: bool = False
    templated: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.pairs):
            raise ValueError(f"answer {self.answer} is out of range for {len(self.pairs)} choices")
        for index, (_, continuation) in enumerate(self.pairs):
            if not continuation.strip():
                raise ValueError(f"{self.name_of(index)} is empty")

    def name_of(self, index: int) -> str:
        """What messages call a continuation."""
        return "the answer" if len(self.pairs) == 1 else f"choice {index}"

    @property
    def opened(self) -> bool:
        """Whether a context is all that the model is given before it answers: its spaces and tokens stay its own."""
        return self.closed or self.templated

    @property
    def right(self) -> str:
        """The right pair as one text."""
        return "".join(self.pairs[self.answer])
