"""From raw rows to encoded ones, many at a time; a row that cannot be used says why instead of stopping the others."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from datasets import Features, List, Value

from flexora.data.batch import answer_tokens, packed_length
from flexora.data.chat import Conversation, Message, encode_conversation, write_conversation
from flexora.data.encoding import EncodedQuestion, Tokens, encode, texts_of, tokenize
from flexora.data.hygiene import text_key
from flexora.data.json_rows import ITEM, LINE, as_row
from flexora.data.prompts import as_chat, as_messages, with_examples
from flexora.data.question import Pairs
from flexora.data.sources import Row
from flexora.errors import FlexoraError, shown

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Reading:
    """What a row says.

    Attributes:
        pairs: What the model reads; or
        messages: a conversation, which the chat template writes.
        asked: The question in words: rows with the same one share a question.
        said: The question with its right answer: rows with the same one are the same row.
        group: Rows of other groups make no examples for this one (MMLU's subjects).
        description: What stands before all examples.
    """

    pairs: Pairs | None
    asked: str
    said: str
    messages: tuple[Message, ...] = ()
    group: str = ""
    description: str = ""


Reader = Callable[[Row], Reading]
#: For each group of rows its solved examples.
Examples = Mapping[str, Sequence[Pairs]]

#: What a malformed row makes a reader raise.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


def read_row(row: Row, fields: Sequence[str], reader: Reader) -> Reading:
    """Read one row.

    Raises:
        ValueError: If a field is missing; readers of files fill missing fields with None.
        KeyError: Among the other kinds of :data:`MALFORMED`, if a field does not hold what it should.
    """
    row = as_row(row)
    for field in fields:
        if row.get(field) is None:
            raise ValueError(f"field {field} is missing")
    return reader(row)


def encode_rows(
    batch: Mapping[str, Sequence[Any]],
    indices: Sequence[int],
    *,
    fields: Sequence[str],
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    room: int,
    chat: bool,
    examples: Examples,
    every_turn: bool,
    code: str,
) -> dict[str, list[Any]]:
    """Encode a batch of raw rows, as ``datasets.map`` hands them over.

    Args:
        batch: Columns of the rows.
        indices: Their places in the split.
        fields: Fields that every row must have.
        reader: Reads a row.
        tokenizer: The base model's tokenizer.
        max_length: Longest sequence in tokens.
        room: Tokens that a prompt leaves to an answer that the model writes.
        chat: Whether contexts become turns of the chat template.
        examples: For each group of rows the solved examples before each context.
        every_turn: Whether all turns of the assistant are scored, or the last alone.
        code: There for the cache's key alone.

    Returns:
        Columns of :class:`EncodedQuestion`; the lengths that batching needs; the row's ``line`` (of its file, or its
        number; 1-based); hashes of what is ``asked`` and ``said``; and ``problem``, which is empty where the row can be
        used.
    """
    names = list(batch)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    found: list[tuple[Reading, Pairs | Conversation] | str] = []
    for row in rows:
        try:
            reading = read_row(row, fields, reader)
            _require_encodable(reading)
            found.append((reading, _written(reading, tokenizer, examples, chat=chat, every_turn=every_turn)))
        except MALFORMED as error:
            found.append(_reason(error))
    written = [one[1] for one in found if not isinstance(one, str)]
    texts = (one.texts(tokenizer) if isinstance(one, Conversation) else texts_of(one, tokenizer) for one in written)
    tokens = tokenize(chain.from_iterable(texts), tokenizer)
    columns: dict[str, list[Any]] = {name: [] for name in EMPTY}
    for row, index, one in zip(rows, indices, found, strict=True):
        encoded = (
            EMPTY | {"problem": one} if isinstance(one, str) else _encoded(*one, tokenizer, max_length, tokens, room)
        )
        encoded["line"] = row.get(LINE) or row.get(ITEM) or index + 1
        for name, column in columns.items():
            column.append(encoded[name])
    return columns


def _encoded(
    reading: Reading,
    written: Pairs | Conversation,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    tokens: Tokens,
    room: int,
) -> dict[str, Any]:
    """The columns of one row, but for its line."""
    try:
        if isinstance(written, Conversation):
            question = encode_conversation(written, tokenizer, max_length, tokens, room)
        else:
            question = encode(written, tokenizer, max_length, tokens, room)
    except ValueError as error:
        return EMPTY | {"problem": _reason(error)}
    keys = {"asked": text_key(reading.asked), "said": text_key(reading.said)}
    return {**question, **_facts(question), **keys, "problem": ""}


def _written(
    reading: Reading, tokenizer: PreTrainedTokenizerBase, examples: Examples, *, chat: bool, every_turn: bool
) -> Pairs | Conversation:
    """What the model reads of a row: behind its examples, and by the chat template where there is one.

    An answer that the model writes itself becomes a turn, and so does that of an example; choices are only compared,
    and end with themselves.
    """
    if reading.pairs is not None and not (chat and reading.pairs.closed):
        pairs = with_shots(reading, examples)
        return as_chat(pairs, tokenizer) if chat else pairs
    messages = list(reading.messages)
    if reading.pairs is not None:
        solved = [*examples.get(reading.group, ()), reading.pairs]
        messages = [message for one in solved for message in as_messages(*one.pairs[one.answer])]
    return write_conversation(messages, tokenizer, every_turn=every_turn)


EMPTY: dict[str, Any] = {
    **EncodedQuestion(sequences=[], starts=[], chars=[], answer=0, unscored=[], cut=0),
    **{"length": 0, "packed_length": 0, "answer_tokens": 0, "line": 0, "asked": "", "said": "", "problem": ""},
}


def example_rows(
    raw: Dataset, order: Sequence[int], fields: Sequence[str], reader: Reader, count: int, reported: Container[str]
) -> list[Row]:
    """The rows of solved examples: in an order, the first ``count`` rows of each group that can be used.

    Args:
        raw: Raw rows of the train split.
        order: Places in it.
        fields: Fields that every row must have.
        reader: Reads a row.
        count: Examples of each group.
        reported: Keys of what the reported rows say; none of these may stand solved before itself.

    Raises:
        FlexoraError: If a group has fewer.
    """
    chosen: list[Row] = []
    found: dict[str, int] = {}
    for place in order:
        try:
            row = as_row(raw[int(place)])
            reading = read_row(row, fields, reader)
        except MALFORMED:
            continue
        if text_key(reading.said) in reported:
            continue
        if found.setdefault(reading.group, 0) < count:
            found[reading.group] += 1
            chosen.append(row)
        elif not reading.group:
            break
    short = {group: number for group, number in found.items() if number < count} if found else {"": 0}
    for group, number in short.items():
        rows = f"{number} rows of {group}" if group else f"{number} rows"
        raise FlexoraError(f"data.num_fewshot: the train split has {rows}, but {count} are asked for; lower it")
    return chosen


def said_keys(raw: Dataset, fields: Sequence[str], reader: Reader) -> set[str]:
    """Keys of what raw rows say; rows that cannot be used say nothing."""
    keys = set()
    for row in raw:
        try:
            keys.add(text_key(read_row(row, fields, reader).said))
        except MALFORMED:
            continue
    return keys


def with_shots(reading: Reading, examples: Examples) -> Pairs:
    """What the model reads of a row with pairs, behind its description and the solved examples of its group."""
    assert reading.pairs is not None, "a chat has turns"
    shots = [reading.description, *(example.right for example in examples.get(reading.group, ()))]
    return with_examples(reading.pairs, [shot for shot in shots if shot])


#: Types of the encoded columns: a batch whose lists are all empty would leave them open.
FEATURES = Features(
    sequences=List(List(Value("int32"))),
    starts=List(Value("int32")),
    chars=List(Value("int32")),
    unscored=List(Value("int32")),
    **{name: Value("int32") for name in ("answer", "cut", "length", "packed_length", "answer_tokens")},
    line=Value("int64"),
    **{name: Value("string") for name in ("asked", "said", "problem")},
)


def _require_encodable(reading: Reading) -> None:
    """Refuse half a surrogate pair, which JSON allows and no tokenizer takes, before it stops a whole batch.

    Raises:
        UnicodeEncodeError: A ValueError.
    """
    pairs = reading.pairs.pairs if reading.pairs else ()
    for text in [reading.asked, reading.said, *(text for pair in pairs for text in pair)]:
        text.encode()


def _facts(question: EncodedQuestion) -> dict[str, int]:
    length = len(question["sequences"][question["answer"]]) - 1
    return {"length": length, "packed_length": packed_length(question), "answer_tokens": answer_tokens(question)}


def _reason(error: Exception) -> str:
    name = f"{type(error).__name__} " if isinstance(error, KeyError | IndexError) else ""
    return shown(f"{name}{error}", 200) or type(error).__name__
