"""What a benchmark row becomes: pairs of context and continuation, and the index of the right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One multiple-choice question, ready for a causal language model.

    Shared prompts (ARC: one context, several continuations) and partial evaluation (WinoGrande: several contexts, one
    continuation) are both lists of pairs.

    Attributes:
        pairs: ``(context, continuation)`` for each choice; the model scores the continuation alone.
        answer: Index of the right pair.
    """

    pairs: tuple[tuple[str, str], ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.pairs) < 2:
            raise ValueError(f"a question needs at least two choices, this one has {len(self.pairs)}")
        if not 0 <= self.answer < len(self.pairs):
            raise ValueError(f"answer {self.answer} is out of range for {len(self.pairs)} choices")
        for index, (_, continuation) in enumerate(self.pairs):
            if not continuation.strip():
                raise ValueError(f"choice {index} is empty")

    @classmethod
    def with_choices(cls, context: str, choices: Sequence[str], answer: int) -> Question:
        """One context with several choices, each a space away from it.

        Raises:
            ValueError: If a choice is not text: a reader's None would be scored as the word ``None``.
        """
        for index, choice in enumerate(choices):
            if not isinstance(choice, str):
                raise ValueError(f"choice {index} is {choice!r}, not text")
        return cls(tuple((context, f" {choice}") for choice in choices), answer)
