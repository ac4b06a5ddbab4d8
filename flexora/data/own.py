"""The user's own rows: questions with choices, instructions with responses, chats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from flexora.data.chat import ASSISTANT, read_messages
from flexora.data.columns import Columns, pick
from flexora.data.generative import UNKNOWN, GenerativeDataModule
from flexora.data.multiple_choice import MultipleChoiceDataModule, read_question
from flexora.data.own_rows import OwnRows, read_new, require_text
from flexora.data.question import Pairs, Question, choices_of
from flexora.data.reading import Reader, Reading
from flexora.data.sources import Row
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from flexora.scoring.results import Metric


def choice_index(answer: Any, choices: Sequence[str], first: int) -> int:
    """Which choice an answer means: its text, else its letter, else its number counted from ``first``.

    Raises:
        ValueError: If it is none of these.
    """
    for text in (answer, answer.strip()) if isinstance(answer, str) else ():
        if text in choices:
            return list(choices).index(text)
    letters = ascii_uppercase[: len(choices)]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return letters.index(answer.strip().upper())
    if not isinstance(answer, bool) and str(answer).strip().lstrip("-").isdigit():
        return int(answer) - first
    raise ValueError(f"answer {answer!r} is neither a choice, nor its letter, nor its number")


def _require_clear(answer: Any, labels: Sequence[str]) -> None:
    """Refuse a number that is one of the labels of all rows, but counts to another one.

    Raises:
        ValueError: If it is: which of the two is meant, nothing says.
    """
    if type(answer) is not int or str(answer) not in labels or labels.index(str(answer)) == answer:
        return
    counted = repr(labels[answer]) if 0 <= answer < len(labels) else "none"
    raise ValueError(
        f"answer {answer} is a label, but counted from 0 it means {counted}; set data.first_answer to 0 or 1 where "
        "answers count the labels, or write them as texts"
    )


def _require_labels(labels: Sequence[str], columns: Columns) -> None:
    if "choices" in columns:
        raise FlexoraError("data.choices: data.columns.choices names the choices of each row; remove one of the two")
    if len(set(labels)) < max(2, len(labels)) or not all(label.strip() for label in labels):
        raise FlexoraError(f"data.choices: {labels} are not two or more different labels; mend them")


def _own_question(row: Row, columns: Columns, first: int | None, labels: Sequence[str] = ()) -> Question:
    prompt, choices = pick(row, "prompt", columns), tuple(labels) or choices_of(pick(row, "choices", columns))
    answer = pick(row, "answer", columns)
    if first is None:
        _require_clear(answer, labels)
    question = Question(prompt, choices, choice_index(answer, choices, first or 0))
    if choices.count(choices[question.answer]) > 1:
        raise ValueError(f"the answer {choices[question.answer]!r} is there more than once")
    return question


class JsonlMultipleChoice(OwnRows, MultipleChoiceDataModule):
    """Multiple-choice rows of your own: ``prompt``, ``choices`` (a list of texts) and ``answer``.

    ``answer`` is the text of the right choice, its letter, or its number.

    Args:
        choices: The choices of all rows, such as ``[negative, positive]``: a row is then a prompt and its answer.
        template: The context in the completion style, with a place for ``{stem}``, which is the prompt.
        letters_template: The context in the letters style, with places for ``{stem}`` and ``{options}``.
        first_answer: The number of the first choice where answers are numbers; 0 where it is not given, but then a
            number that is one of ``choices`` itself and counts to another one is refused.
        options: Settings of :class:`OwnRows` and of :class:`MultipleChoiceDataModule`.
    """

    primary_metric = "acc"
    own_fields = ("prompt", "choices", "answer")
    stem_form = "{prompt}"

    def __init__(
        self,
        *args: Any,
        choices: Sequence[str] = (),
        template: str = "{stem}",
        letters_template: str = "{stem}\n{options}\nAnswer:",
        first_answer: Literal[0, 1] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, text, places in (
            ("template", template, {"stem": ""}),
            ("letters_template", letters_template, {"stem": "", "options": ""}),
        ):
            require_text(name, text)
            try:
                text.format(**places)
            except (AttributeError, IndexError, KeyError, ValueError) as error:
                known = " and ".join(f"{{{place}}}" for place in places)
                raise FlexoraError(f"data.{name}: {text!r} has a place other than {known}; mend it") from error
            for place in places:
                if f"{{{place}}}" not in text:
                    raise FlexoraError(f"data.{name}: {text!r} has no place {{{place}}}; add it")
        if choices:
            _require_labels(choices, self.columns)
            self.fixed = {"choices": list(choices)}
        self.template = template
        self.letters_template = letters_template
        self.first_answer = first_answer

    @staticmethod
    def question(row: Row) -> Question:
        """Read a row whose columns have the fields' names."""
        return _own_question(row, {}, 0)

    def reader(self) -> Reader:
        """Reads a row through the mapping of columns."""
        labels = self.fixed.get("choices", ())
        question = partial(_own_question, columns=self.columns, first=self.first_answer, labels=labels)
        return partial(read_question, question=question, write=self.writer())


def _instruction(row: Row, columns: Columns, template: str) -> Reading:
    prompt, response = pick(row, "prompt", columns), pick(row, "response", columns)
    for name, text in (("prompt", prompt), ("response", response)):
        if not isinstance(text, str):
            raise ValueError(f"{name} is {text!r}, not text")
    context = template.format(stem=prompt)
    return Reading(Pairs(((context, response),), 0, closed=True), asked=prompt, said=f"{prompt}\n{response}")


def _conversation(row: Row, columns: Columns) -> Reading:
    messages = read_messages(pick(row, "messages", columns))
    turns = [f"{message['role']}: {message['content']}" for message in messages]
    return Reading(None, asked="\n".join(turns[:-1]), said="\n".join(turns), messages=messages)


def _new_conversation(row: Row) -> Reading:
    asked = row.get("messages")
    if "messages" not in row:
        raise ValueError(f"messages is missing among {', '.join(row)}")
    if not isinstance(asked, list) or not asked:
        raise ValueError("messages is not a list of turns")
    messages = read_messages([*asked, {"role": ASSISTANT, "content": UNKNOWN}])
    if messages[-2:-1] and messages[-2]["role"] == ASSISTANT:
        raise ValueError("the last turn is the assistant's; there is nothing to answer")
    return Reading(None, asked="", said="", messages=messages)


class JsonlInstruction(OwnRows, GenerativeDataModule):
    """Instructions of your own: ``prompt`` and ``response``, or ``messages`` of a chat; the loss is on responses alone.

    Args:
        messages: Rows are chats: lists of ``role`` and ``content``, or of ShareGPT's ``from`` and ``value``, written by
            the tokenizer's chat template. The evaluation asks for the assistant's last turn.
        every_turn: Train on every turn of the assistant; with ``false`` on the last alone, for templates that write
            turns in another way once others follow, as Qwen3's does with its empty thoughts.
        separator: What stands between prompt and response where no chat template is used.
        exact_match: Generate answers in the evaluation, and count those that equal the response; else the loss is what
            is reported.
        options: Settings of :class:`OwnRows` and of :class:`GenerativeDataModule`.
    """

    row_form = ("{prompt}", "{response}")

    def __init__(
        self,
        *args: Any,
        messages: bool = False,
        every_turn: bool = True,
        separator: str = "\n",
        exact_match: bool = False,
        **kwargs: Any,
    ) -> None:
        self.own_fields = ("messages",) if messages else ("prompt", "response")
        super().__init__(*args, **kwargs)
        require_text("separator", separator)
        if messages and self.num_fewshot:
            raise FlexoraError("data.num_fewshot: chats take no solved examples; leave it at 0")
        self.messages = messages
        self.every_turn = every_turn
        self.separator = separator
        literal = separator.replace("{", "{{").replace("}", "}}")
        self.template = "{stem}" if self.chat_template or messages else f"{{stem}}{literal}"
        self.exact_match = exact_match
        self.chat_template = self.chat_template or messages
        self.primary_metric = "exact_match" if exact_match else "loss"
        self.metrics = ("exact_match",) if exact_match else ("loss",)

    def reader(self) -> Reader:
        """Reads a row through the mapping of columns."""
        if self.messages:
            return partial(_conversation, columns=self.columns)
        return partial(_instruction, columns=self.columns, template=self.template)

    def new_reader(self) -> Reader:
        """Reads a new row: a ``prompt``, or ``messages`` that the assistant is to answer."""
        if self.messages:
            return partial(read_new, columns=self.columns, fixed={}, read=_new_conversation)
        return super().new_reader()

    @property
    def generates(self) -> bool:
        """Whether the evaluation asks for generated answers."""
        return self.exact_match

    def matches(self, generated: str, answer: str) -> dict[Metric, bool]:
        """Whether they are the same but for spaces around them."""
        return {"exact_match": generated.strip() == answer.strip()}
