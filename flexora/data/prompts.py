"""Prompt styles: from a question to the text that the model reads, in the words of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase
from typing import TYPE_CHECKING, Literal

from flexora.data.chat import ASSISTANT, Message, render
from flexora.data.question import Pairs, Question
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: ``completion``: the choices are continuations of the question. ``letters``: they are listed, a letter is the answer.
PromptStyle = Literal["completion", "letters"]

BETWEEN_EXAMPLES = "\n\n"


def completion(question: Question, template: str) -> Pairs:
    """One context with several continuations, each a space away from it.

    Args:
        question: The question.
        template: The context, with a place for ``{stem}``.
    """
    context = template.format(stem=question.stem)
    return Pairs(tuple((context, f" {choice}") for choice in question.choices), question.answer)


def letters(question: Question, template: str) -> Pairs:
    """All choices listed under letters, and the letters as continuations.

    Args:
        question: The question.
        template: The context, with places for ``{stem}`` and ``{options}``.

    Raises:
        ValueError: If there are more choices than letters.
    """
    if len(question.choices) > len(ascii_uppercase):
        raise ValueError(f"{len(question.choices)} choices are more than there are letters")
    names = ascii_uppercase[: len(question.choices)]
    options = "\n".join(f"{name}. {choice}" for name, choice in zip(names, question.choices, strict=True))
    context = template.format(stem=question.stem, options=options)
    return Pairs(tuple((context, f" {name}") for name in names), question.answer)


def with_examples(pairs: Pairs, examples: Sequence[str]) -> Pairs:
    """Put solved examples before every context, an empty line after each."""
    before = "".join(example + BETWEEN_EXAMPLES for example in examples)
    return replace(pairs, pairs=tuple((before + context, continuation) for context, continuation in pairs.pairs))


def as_messages(context: str, answer: str = "") -> list[Message]:
    """A context as the user's turn, and where there is one the answer as the assistant's, without the space before."""
    turns = [Message(role="user", content=context)]
    return [*turns, Message(role=ASSISTANT, content=answer.removeprefix(" "))] if answer else turns


def as_chat(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Every context as the user's turn of the tokenizer's chat template, every continuation as the assistant's."""
    turns = {context: render(as_messages(context), tokenizer, opened=True) for context, _ in pairs.pairs}
    written = tuple((turns[context], text.removeprefix(" ")) for context, text in pairs.pairs)
    return replace(pairs, pairs=written, templated=True)


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that there is a chat template.

    Raises:
        FlexoraError: If there is none.
    """
    if tokenizer.chat_template is None:
        raise FlexoraError(
            "data.chat_template: the tokenizer has no chat template; leave it at false, or take an instruct model"
        )
