"""Conversations in tokens: the tokenizer's chat template writes them, and the assistant's turns alone are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from jinja2 import TemplateError

from flexora.data.encoding import EncodedQuestion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"


class Message(TypedDict):
    """One turn.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: What is said.
    """

    role: str
    content: str


def read_messages(messages: object) -> tuple[Message, ...]:
    """Check the turns of a conversation.

    Raises:
        ValueError: If they are no list of role and content, or the last is not the assistant's.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("messages is not a list of turns")
    for number, message in enumerate(messages, start=1):
        for name in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(name), str):
                raise ValueError(f"turn {number} has no {name} in words")
    if messages[-1]["role"] != ASSISTANT:
        raise ValueError(f"the last turn is the {messages[-1]['role']}'s, not the assistant's")
    return tuple(Message(role=message["role"], content=message["content"]) for message in messages)


def encode_conversation(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, max_length: int, *, every_turn: bool
) -> EncodedQuestion:
    """Tokenise a conversation; what the assistant says, with what ends its turns, is scored.

    Args:
        messages: The turns; the last is the assistant's.
        tokenizer: The base model's tokenizer, with a chat template.
        max_length: Longest sequence in tokens; what is longer is cut at its beginning.
        every_turn: Score every turn of the assistant (training) or the last alone (evaluation).

    Raises:
        ValueError: If the last turn does not fit, or the template writes a turn in another way once others follow it.
    """
    whole: list[int] = []
    turns: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        start = _tokens(messages[:number], tokenizer, opened=True)
        end = _tokens(messages[: number + 1], tokenizer, opened=False)
        if end[: len(start)] != start or start[: len(whole)] != whole:
            raise ValueError(f"the chat template writes turn {number + 1} in another way once others follow it")
        turns.append((len(start), len(end)))
        whole = end
    turns = turns if every_turn else turns[-1:]
    overhang = max(0, len(whole) - max_length)
    if turns[-1][0] - overhang < 1:
        raise ValueError(
            f"the last turn has {turns[-1][1] - turns[-1][0]} tokens, which max_length {max_length} cannot hold"
        )
    kept = [(start - overhang, end - overhang) for start, end in turns if start - overhang >= 1]
    scored = {position for start, end in kept for position in range(start, end)}
    first = kept[0][0]
    return EncodedQuestion(
        sequences=[whole[overhang:]],
        starts=[first],
        chars=[len(messages[-1]["content"])],
        answer=0,
        unscored=[position for position in range(first, len(whole) - overhang) if position not in scored],
    )


def _tokens(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> list[int]:
    """The turns in tokens, up to the assistant's next one where it is ``opened``."""
    text = render(messages, tokenizer, opened=opened)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> str:
    """The turns as the chat template writes them.

    Raises:
        ValueError: If the template refuses them: some know no system, some want user and assistant in turns.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=opened, tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    assert isinstance(text, str)
    return text
