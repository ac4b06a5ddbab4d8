"""Conversations in tokens: the tokenizer's chat template writes them, and the assistant's turns alone are scored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, TypedDict

from jinja2 import TemplateError

from flexora.data.encoding import EncodedQuestion, Text, Tokens, behind_special, overhang, tokenize, tokens_behind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ASSISTANT = "assistant"
#: What ShareGPT calls the roles.
ROLES = {"human": "user", "gpt": ASSISTANT}
#: Templates that name a date take the one of Llama 3's own: the day of the training would change the prompts.
DATE = "26 Jul 2024"
#: The same day for those that ask for the present one in a form of their own: by ``strftime``'s codes.
CODES = {
    **{"%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul"},
    **{"%d": "26", "%-d": "26", "%e": "26", "%j": "208", "%A": "Friday", "%a": "Fri"},
    **{"%H": "12", "%I": "12", "%p": "PM", "%M": "00", "%S": "00", "%F": "2024-07-26", "%T": "12:00:00"},
}
#: What stands before such a template. Its line feed belongs to the block and is not written.
CLOCK = "{{% macro strftime_now(form) %}}{{{{ form{} }}}}{{% endmacro %}}\n".format(
    "".join(f" | replace('{code}', '{text}')" for code, text in CODES.items())
)

FIRST_LINE = re.compile(r"\s*\S[^\n]*")


class Message(TypedDict):
    """One turn.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: What is said.
    """

    role: str
    content: str


def read_messages(messages: object) -> tuple[Message, ...]:
    """Check the turns of a conversation; ``from`` and ``value``, as ShareGPT has them, are role and content.

    Raises:
        ValueError: If they are no list of role and content, or the last is not the assistant's.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError("messages is not a list of turns")
    for number, message in enumerate(messages, start=1):
        for name in ("tool_calls", "function_call"):  # a model would learn the answer without them
            if isinstance(message, dict) and message.get(name):
                raise ValueError(f"turn {number} has {name}, which is not read; write it into the turn's words")
    turns = [_turn(message) for message in messages]
    for number, message in enumerate(turns, start=1):
        for name in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(name), str):
                raise ValueError(f"turn {number} has no {name} in words")
        if message["role"] == ASSISTANT and not message["content"].strip():
            raise ValueError(f"turn {number}: the answer is empty")
    if turns[-1]["role"] != ASSISTANT:
        raise ValueError(f"the last turn is the {turns[-1]['role']}'s, not the assistant's")
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)


def _turn(message: Any) -> Any:
    """The turn by the names that templates know."""
    if not isinstance(message, dict) or message.keys().isdisjoint(("from", "value")) or "role" in message:
        return message
    role = message.get("from")
    return {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}


@dataclass(frozen=True)
class Conversation:
    """A conversation as the chat template writes it.

    Attributes:
        parts: Its text in parts, one after another; every other one, from the second on, is what the assistant says,
            with what ends its turn.
        last: The assistant's last words.
    """

    parts: tuple[str, ...]
    last: str

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Text]:
        """Every text that :func:`encode_conversation` needs in tokens."""
        yield self.parts[0], False  # the template writes the beginning of text itself
        yield "".join(self.parts), False
        for part in self.parts[1:]:
            yield behind_special(part, tokenizer)


def write_conversation(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, every_turn: bool
) -> Conversation:
    """Write a conversation by the tokenizer's chat template.

    Args:
        messages: The turns; the last is the assistant's.
        tokenizer: The base model's tokenizer, with a chat template.
        every_turn: Score every turn of the assistant (training) or the last alone (evaluation, and training where the
            template writes the last turn in another way, as Qwen3's does). A greeting that answers nothing is never
            scored.

    Raises:
        ValueError: If the template refuses it, or writes a turn in another way once others follow it.
    """
    places = [place for place, message in enumerate(messages) if message["role"] == ASSISTANT and place]
    if not places:
        raise ValueError("the assistant answers nothing")
    borders: list[int] = []
    whole, end = "", 0
    for place in places if every_turn else places[-1:]:
        before = render(messages[:place], tokenizer, opened=True)
        kept = before[:end] == whole[:end]
        if borders:
            borders.append(len(whole) if before.startswith(whole) else end)
        whole, answer = render(messages[: place + 1], tokenizer, opened=False), messages[place]["content"].strip()
        start = whole.find(answer, len(before))
        if not kept or not whole.startswith(before) or start < 0:
            raise ValueError(
                "the chat template writes turns in another way once others follow"
                + ("; set data.every_turn to false to train on the last alone" if every_turn and places[1:] else "")
            )
        # Some templates write more behind the last turn alone: a turn ends with the line that its answer ends in.
        said = start + len(answer)
        end = said + len(_first_line(whole[said:]))
        borders.append(len(before))
    parts = (whole[start:end] for start, end in pairwise([0, *borders, len(whole)]))
    return Conversation(tuple(parts), messages[-1]["content"])


def encode_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int, tokens: Tokens, room: int = 0
) -> EncodedQuestion:
    """A conversation in tokens; what the assistant says, with what ends its turns, is scored.

    What the model reads before it answers is the same whatever the answer is: where the tokens of the whole do not
    begin with those of the text before a part, the part is tokenised by itself.

    Args:
        conversation: The conversation.
        tokenizer: The base model's tokenizer.
        max_length: Longest sequence in tokens; what is longer is cut at its beginning.
        tokens: Its texts in tokens, among others.
        room: See :func:`~flexora.data.encoding.overhang`.

    Raises:
        ValueError: If the last turn does not fit.
    """
    pieces = _pieces(conversation.parts, tokenizer, tokens)
    borders = [0, *accumulate(map(len, pieces))]
    turns = [(borders[place], borders[place + 1]) for place in range(1, len(pieces), 2)]
    whole = list(chain.from_iterable(pieces))
    cut = overhang(len(whole), turns[-1][0], max_length, room, "the last turn")
    kept = [(start - cut, end - cut) for start, end in turns if start - cut >= 1]
    scored = {position for start, end in kept for position in range(start, end)}
    start = kept[0][0]
    return EncodedQuestion(
        sequences=[whole[cut:]],
        starts=[start],
        chars=[len(conversation.last)],
        answer=0,
        unscored=[position for position in range(start, len(whole) - cut) if position not in scored],
        cut=cut,
    )


def _pieces(parts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> list[list[int]]:
    """The tokens of each part."""
    first, *others = parts
    pieces = [tokens[first, False], *(tokens_behind(part, tokenizer, tokens) for part in others)]
    if list(chain.from_iterable(pieces)) == tokens["".join(parts), False]:
        return pieces
    texts = [(text, False) for text in accumulate(parts)]
    grown = tokenize(texts, tokenizer)  # seldom: for most tokenizers the parts make up the whole
    for place, (before, after) in enumerate(pairwise(grown[text] for text in texts), start=1):
        if after[: len(before)] == before:
            pieces[place] = after[len(before) :]
    return pieces


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first line of what the chat template writes behind the assistant's words."""
    words = "words"
    turns = [Message(role="user", content="?"), Message(role=ASSISTANT, content=words)]
    return _first_line(render(turns, tokenizer, opened=False).rpartition(words)[2]).strip()


def _first_line(text: str) -> str:
    """The text up to the end of the first line that holds something."""
    found = FIRST_LINE.match(text)
    return found.group() if found else ""


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> str:
    """The turns as the chat template writes them, up to the assistant's next one where it is ``opened``.

    Raises:
        ValueError: If the template refuses them: some know no system, some want user and assistant in turns.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = CLOCK + template
    try:
        text = tokenizer.apply_chat_template(
            list(messages), chat_template=template, add_generation_prompt=opened, tokenize=False, date_string=DATE
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    assert isinstance(text, str)
    return text
