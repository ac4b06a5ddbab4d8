"""Conversations in tokens: the tokenizer's chat template writes them, and the assistant's turns alone are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from jinja2 import TemplateError

from flexora.data.encoding import EncodedQuestion, Text, Tokens, overhang

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


@dataclass(frozen=True)
class Conversation:
    """A conversation as the chat template writes it.

    Attributes:
        turns: For each turn of the assistant that is scored the text before it, and the text that ends with it.
        last: The assistant's last words.
    """

    turns: tuple[tuple[str, str], ...]
    last: str

    def texts(self) -> Iterator[Text]:
        """Every text that :func:`encode_conversation` needs in tokens."""
        for before, after in self.turns:  # the template writes the beginning of text itself
            yield before, False
            yield after, False


def write_conversation(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, every_turn: bool
) -> Conversation:
    """Write a conversation by the tokenizer's chat template.

    Args:
        messages: The turns; the last is the assistant's.
        tokenizer: The base model's tokenizer, with a chat template.
        every_turn: Score every turn of the assistant (training) or the last alone (evaluation).

    Raises:
        ValueError: If the template refuses it.
    """
    places = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT]
    turns = tuple(
        (
            render(messages[:place], tokenizer, opened=True),
            render(messages[: place + 1], tokenizer, opened=False),
        )
        for place in (places if every_turn else places[-1:])
    )
    return Conversation(turns, messages[-1]["content"])


def encode_conversation(conversation: Conversation, tokens: Tokens, max_length: int, room: int = 0) -> EncodedQuestion:
    """A conversation in tokens; what the assistant says, with what ends its turns, is scored.

    Args:
        conversation: The conversation.
        tokens: Its texts in tokens, among others.
        max_length: Longest sequence in tokens; what is longer is cut at its beginning.
        room: See :func:`~flexora.data.encoding.overhang`.

    Raises:
        ValueError: If the last turn does not fit, or the template writes a turn in another way once others follow it.
    """
    whole: list[int] = []
    turns: list[tuple[int, int]] = []
    for before, after in conversation.turns:
        start, end = tokens[before, False], tokens[after, False]
        if end[: len(start)] != start or start[: len(whole)] != whole:
            raise ValueError("the chat template writes turns in another way once others follow")
        turns.append((len(start), len(end)))
        whole = end
    cut = overhang(len(whole), turns[-1][0], max_length, room, "the last turn")
    kept = [(start - cut, end - cut) for start, end in turns if start - cut >= 1]
    scored = {position for start, end in kept for position in range(start, end)}
    first = kept[0][0]
    return EncodedQuestion(
        sequences=[whole[cut:]],
        starts=[first],
        chars=[len(conversation.last)],
        answer=0,
        unscored=[position for position in range(first, len(whole) - cut) if position not in scored],
        cut=cut,
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes behind the assistant's words, without the spaces around it."""
    words = "words"
    turns = [Message(role="user", content="?"), Message(role=ASSISTANT, content=words)]
    return render(turns, tokenizer, opened=False).rpartition(words)[2].strip()


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> str:
    """The turns as the chat template writes them, up to the assistant's next one where it is ``opened``.

    Raises:
        ValueError: If the template refuses them: some know no system, some want user and assistant in turns.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=opened, tokenize=False)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    assert isinstance(text, str)
    return text
