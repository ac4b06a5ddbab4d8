"""Conversations by templates of every kind: what is read, what is scored, and what is refused."""

from __future__ import annotations

import datetime

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from flexora.data.chat import DATE, Message, encode_conversation, end_of_turn, render, write_conversation
from flexora.data.encoding import tokenize
from tests.tiny import CHAT_TEMPLATE, SPACED, byte_tokenizer, spaced_tokenizer

#: Llama 3 strips contents and opens with the beginning of text; Phi 3 ends the last turn with more than the others;
#: Mistral has no opening words of the assistant; Gemma calls it the model; Llama 3.2 names the day.
TEMPLATES = {
    "plain": CHAT_TEMPLATE,
    "llama 3": "{{ bos_token }}{% for m in messages %}<h>{{ m['role'] }}</h>\n\n{{ m['content'] | trim }}<eot>"
    "{% endfor %}{% if add_generation_prompt %}<h>assistant</h>\n\n{% endif %}",
    "phi 3": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "mistral": "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }}[/INST]{% endif %}{% endfor %}",
    "gemma": "{% for m in messages %}<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}",
    "dated": "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n" + CHAT_TEMPLATE,
}
ENDS = {
    "plain": "<eos>",
    "llama 3": "<eot>",
    "phi 3": "<|end|>",
    "mistral": "<eos>",
    "gemma": "<end>",
    "dated": "<eos>",
}


def chat(*contents: str, first: str = "user") -> list[Message]:
    others = {"user": "assistant", "assistant": "user"}
    roles = [first if number % 2 == 0 else others[first] for number in range(len(contents))]
    return [Message(role=role, content=content) for role, content in zip(roles, contents, strict=True)]


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def scored(messages: list[Message], tokenizer: PreTrainedTokenizerFast, *, every_turn: bool) -> tuple[str, list[str]]:
    """A conversation as text, and its scored stretches."""
    conversation = write_conversation(messages, tokenizer, every_turn=every_turn)
    tokens = tokenize(conversation.texts(tokenizer), tokenizer)
    encoded = encode_conversation(conversation, tokenizer, 512, tokens)
    (ids,), (start,) = encoded["sequences"], encoded["starts"]
    stretches: list[list[int]] = []
    for position in range(start, len(ids)):
        if position in encoded["unscored"]:
            continue
        if position - 1 in encoded["unscored"] or position == start:
            stretches.append([])
        stretches[-1].append(ids[position])
    return str(tokenizer.decode(ids)), [str(tokenizer.decode(stretch)) for stretch in stretches]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_the_templates_and_answers_are_scored_with_their_ends(name: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    messages = chat("one?", "first", "two?", "second", "three?", "third")
    text, stretches = scored(messages, tokenizer, every_turn=True)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False, date_string=DATE)
    assert len(stretches) == 3
    for stretch, answer in zip(stretches, ("first", "second", "third"), strict=True):
        assert stretch.strip().startswith(answer + ENDS[name])
        assert not any(other in stretch for other in ("one", "two", "three"))
    assert scored(messages, tokenizer, every_turn=False) == (text, stretches[-1:])
    assert end_of_turn(tokenizer) == ENDS[name]
    asked = tokenizer.apply_chat_template(messages[:5], add_generation_prompt=True, tokenize=False, date_string=DATE)
    assert text[: -len(stretches[-1])] == asked  # what a server gives the model


class Day(datetime.datetime):
    """The day that is written, whatever the day is."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Day:
        return cls(2024, 7, 26, 12, tzinfo=tz)


#: Forms as SmolLM3, gpt-oss (in a macro of its own) and Granite ask for them; a date with the time; one that is cut.
DATED = {
    "{{ strftime_now('%d %B %Y') }}": "26 July 2024",
    "{% macro head() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}{{ head() }}": "2024-07-26",
    "{{- strftime_now('%B %d, %Y') }}": "July 26, 2024",
    "{% set today = strftime_now('%a, %-d.%-m.%y %H:%M') %}{{ today }}": "Fri, 26.7.24 12:00",
    "{% if strftime_now is defined %}{{ strftime_now('%Y %A %T')[:11] }}{% endif %}": "2024 Friday",
}


@pytest.mark.parametrize("day", DATED)
@pytest.mark.parametrize("before", ["", "\n", "  ", "\n  Now:\n "], ids=repr)
def test_a_template_that_asks_for_the_day_gets_the_same_one_always(
    day: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the library would write on that very day, to the last space."""
    tokenizer, messages = tokenizer_with(f"{before}{day}{CHAT_TEMPLATE}"), chat("one?", "first")
    text = render(messages, tokenizer, opened=False)
    assert DATED[day] in text
    assert tokenizer.apply_chat_template(messages, tokenize=False) != text  # today is another day
    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == text


def test_one_of_several_templates_is_the_default() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    expected = render(chat("one?", "first"), tokenizer, opened=False)
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "other"}
    assert render(chat("one?", "first"), tokenizer, opened=False) == expected
    tokenizer.chat_template = {"default": "{{ strftime_now('%Y') }}" + CHAT_TEMPLATE, "tool_use": "other"}
    assert render(chat("one?", "first"), tokenizer, opened=False) == f"2024{expected}"
    tokenizer.chat_template = {"tool_use": CHAT_TEMPLATE}
    with pytest.raises(ValueError, match="no default"):
        render(chat("one?", "first"), tokenizer, opened=False)


def test_a_greeting_is_read_and_not_scored() -> None:
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    text, stretches = scored(chat("Hello!", "one?", "first", first="assistant"), tokenizer, every_turn=True)
    assert text == "<assistant>Hello!<eos><user>one?<eos><assistant>first<eos>"
    assert stretches == ["first<eos>"]
    with pytest.raises(ValueError, match="the assistant answers nothing"):
        write_conversation(chat("Hello!", first="assistant"), tokenizer, every_turn=True)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("message['content']", "(message['content'] if loop.last else '')"),
        CHAT_TEMPLATE.replace(
            "message['content']", "(message['content'] | upper if loop.last else message['content'])"
        ),
        CHAT_TEMPLATE.replace("<assistant>{% endif %}", "<assistant><think>{% endif %}"),
    ],
    ids=["forgets", "changes", "opens otherwise"],
)
def test_templates_that_rewrite_turns_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="the chat template writes turns in another way once others follow"):
        write_conversation(chat("a", "b", "c", "d"), tokenizer_with(template), every_turn=True)


def test_the_last_turn_alone_may_be_scored_where_a_template_writes_it_otherwise() -> None:
    """Qwen3 writes an empty thought before the last answer, and none before the others."""
    thought = "<think>\n\n</think>\n\n"
    tokenizer = tokenizer_with(
        CHAT_TEMPLATE.replace(
            "{{ message['content'] }}",
            f"{{{{ {thought!r} if loop.last and message['role'] == 'assistant' }}}}{{{{ message['content'] }}}}",
        )
    )
    messages = chat("one?", "first", "two?", "second")
    with pytest.raises(ValueError, match=r"others follow; set data\.every_turn to false to train on the last alone"):
        scored(messages, tokenizer, every_turn=True)
    text, stretches = scored(messages, tokenizer, every_turn=False)
    assert text == tokenizer.apply_chat_template(messages, tokenize=False)
    assert stretches == [f"{thought}second<eos>"]
    assert scored(messages[:2], tokenizer, every_turn=True)[1] == [f"{thought}first<eos>"]  # one turn is no trouble


@pytest.mark.parametrize("scheme", SPACED)
@pytest.mark.parametrize("answer", ["\n\nyes", "  yes", " yes", "yes", ":yes"])
def test_an_answer_never_changes_the_tokens_of_its_prompt(answer: str, scheme: str) -> None:
    """Line feeds would merge across the border, and a space would stand before the first word of each part."""
    chatty = spaced_tokenizer("?:yesabcdfghijklmnopqrtuvwxz\n", scheme, ("\n", "\n"))
    chatty.chat_template = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    conversation = write_conversation(chat("a?", answer), chatty, every_turn=True)
    encoded = encode_conversation(conversation, chatty, 64, tokenize(conversation.texts(chatty), chatty))
    (ids,), (start,) = encoded["sequences"], encoded["starts"]
    assert ids[:start] == chatty.encode("user:\na?assistant:\n", add_special_tokens=False)
    assert "".join(chatty.convert_ids_to_tokens(ids[start:])) == answer.replace(" ", "\u2581")


@pytest.mark.parametrize("scheme", SPACED)
def test_turns_have_the_tokens_that_the_whole_text_has(scheme: str) -> None:
    """In training as at a server, also behind the ends of turns, where some tokenizers put a space."""
    tokenizer = spaced_tokenizer("?abcYes[]", scheme, ("\u2581", "Y"), ("e", "s"))
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} " + (
        "{{ m['content'] }}{{ eos_token }}{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    )
    messages = chat("a?", "Yes", "b?", "c")
    conversation = write_conversation(messages, tokenizer, every_turn=True)
    encoded = encode_conversation(conversation, tokenizer, 64, tokenize(conversation.texts(tokenizer), tokenizer))
    (ids,), (start,) = encoded["sequences"], encoded["starts"]
    assert ids == tokenizer.apply_chat_template(messages)["input_ids"]
    scored = [token for place, token in enumerate(ids) if place >= start and place not in encoded["unscored"]]
    assert tokenizer.convert_ids_to_tokens(scored) == ["\u2581Y", "es", "</s>", "\u2581", "c", "</s>"]
