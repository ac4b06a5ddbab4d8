"""The user's own chats and responses: what is scored of them, turns in either form, and templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexora.backbone.loading import Backbone
from flexora.data.batch import collate
from flexora.data.chat import read_messages
from flexora.data.generative import until
from flexora.data.own import JsonlInstruction
from flexora.errors import FlexoraError
from tests.data.rows import sharegpt, turns
from tests.tiny import CHAT_TEMPLATE, save_model, write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")


def scored_text(data: JsonlInstruction, row: Any) -> tuple[str, str]:
    """A row as text, and what of it is scored, as a batch has it."""
    batch = collate([row], [0], 0, all_choices=False)
    return str(data.tokenizer.decode(row["sequences"][0])), str(data.tokenizer.decode(batch["target"]))


def test_the_loss_is_on_the_response_alone(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "Say hi", "output": "hi there"}] * 2)
    settings: dict[str, Any] = {"source": str(tmp_path), "columns": {"response": "output"}}
    data = JsonlInstruction(chatty, **settings)
    assert scored_text(data, data.rows("train")[0]) == ("Say hi\nhi there<eos>", "hi there<eos>")
    chat = JsonlInstruction(chatty, chat_template=True, **settings)
    assert scored_text(chat, chat.rows("train")[0]) == ("<user>Say hi<eos><assistant>hi there<eos>", "hi there<eos>")
    assert (data.primary_metric, data.generates) == ("loss", False)
    asked = JsonlInstruction(chatty, exact_match=True)
    assert (asked.primary_metric, asked.generates) == ("exact_match", True)
    assert asked.matches(" hi \n", "hi") == {"exact_match": True}
    assert asked.matches("hi!", "hi") == {"exact_match": False}


def test_chats_and_chat_templates_give_the_same_tokens(tmp_path: Path, chatty: Backbone) -> None:
    for name, row in {
        "pairs": {"prompt": "Say hi", "response": "hi there"},
        "chats": {"messages": turns("Say hi", "hi there")},
    }.items():
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train.jsonl", [row])
    pairs = JsonlInstruction(chatty, source=str(tmp_path / "pairs"), chat_template=True)
    chats = JsonlInstruction(chatty, source=str(tmp_path / "chats"), messages=True)
    for column in ("sequences", "starts", "unscored"):
        assert pairs.rows("train")[column] == chats.rows("train")[column]


def test_generated_and_right_answers_end_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    model = Backbone(
        str(save_model(tmp_path / "ended", "llama", chat_template=CHAT_TEMPLATE.replace("<eos>", "\n### End\n")))
    )
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "How many?", "response": "42"}])
    data = JsonlInstruction(model, source=str(tmp_path), chat_template=True, exact_match=True, max_new_tokens=8)
    assert data.stops == ("### End",)
    assert data.matches(until("42\n### End\n###", data.stops), data.answers[0]) == {"exact_match": True}
    assert JsonlInstruction(model).stops == ()


def test_turns_of_sharegpt_give_the_same_tokens(tmp_path: Path, chatty: Backbone) -> None:
    said = ("one?", "1", "two?", "22")
    system = [{"from": "system", "value": "Be brief."}], [{"role": "system", "content": "Be brief."}]
    write_jsonl(tmp_path / "train.jsonl", [{"c": sharegpt(*said)}, {"c": [*system[0], *sharegpt(*said)]}])
    write_jsonl(tmp_path / "test.jsonl", [{"c": turns(*said)}, {"c": [*system[1], *turns(*said)]}])
    data = JsonlInstruction(chatty, source=str(tmp_path), messages=True, columns={"messages": "c"})
    theirs, ours = data.rows("train"), data.rows("test", reported=False)
    assert theirs.to_list() == ours.to_list()
    assert scored_text(data, theirs[1])[0].startswith("<system>Be brief.<eos><user>one?<eos><assistant>1<eos>")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"from": "human"}], "turn 1 has no content in words"),
        ([{"value": "a"}], "turn 1 has no role in words"),
        ([{"from": ["gpt"], "value": "a"}], "turn 1 has no role in words"),
        ([*sharegpt("a"), {"from": "gpt", "value": " "}], "turn 2: the answer is empty"),
        (sharegpt("a", "b", "c"), "the last turn is the user's, not the assistant's"),
    ],
)
def test_turns_of_sharegpt_that_are_none(messages: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        read_messages(messages)


def test_every_turn_of_the_assistant_is_trained_on_and_the_last_is_reported(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"chat": turns("one?", "1", "two?", "22")}])
    data = JsonlInstruction(chatty, source=str(tmp_path), messages=True, columns={"messages": "chat"})
    whole = "<user>one?<eos><assistant>1<eos><user>two?<eos><assistant>22<eos>"
    row = data.rows("train")[0]
    assert scored_text(data, row) == (whole, "1<eos>22<eos>")
    assert row["answer_tokens"] == len("1") + len("22") + 2
    assert scored_text(data, data.rows("train", reported=True)[0]) == (whole, "22<eos>")
    last = JsonlInstruction(chatty, str(tmp_path), messages=True, columns={"messages": "chat"}, every_turn=False)
    assert scored_text(last, last.rows("train")[0]) == (whole, "22<eos>")
    # What is too long is cut at its beginning: here inside the first question, then inside the first answer.
    length = row["length"] + 1
    cut = JsonlInstruction(
        chatty, source=str(tmp_path), messages=True, columns={"messages": "chat"}, max_length=length - 8
    )
    assert scored_text(cut, cut.rows("train")[0]) == (whole[8:], "1<eos>22<eos>")
    start = whole.index("1<eos>")
    shorter = JsonlInstruction(
        chatty, source=str(tmp_path), messages=True, columns={"messages": "chat"}, max_length=length - start + 4
    )
    assert scored_text(shorter, shorter.rows("train")[0])[1] == "22<eos>"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("hello", "messages is not a list of turns"),
        ([], "messages is not a list of turns"),
        ([{"role": "user"}], "turn 1 has no content in words"),
        ([*turns("a", "b"), 3], "turn 3 has no role in words"),
        (
            [*turns("a"), {"role": "assistant", "content": "b", "tool_calls": [{"name": "c"}]}],
            "turn 2 has tool_calls, which is not read; write it into the turn's words",
        ),
        ([*turns("a"), {"role": "assistant", "content": None, "function_call": {"name": "c"}}], "has function_call"),
        ([*sharegpt("a"), {"from": "gpt", "value": "b", "tool_calls": [{"name": "c"}]}], "has tool_calls"),
        (turns("a", "b", "c"), "the last turn is the user's, not the assistant's"),
        (turns("a", "b" * 200), "the last turn has 201 tokens, which max_length 64 cannot hold"),
    ],
)
def test_chats_that_are_none(messages: Any, expected: str, tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"messages": messages}])
    with pytest.raises(FlexoraError, match=expected):
        JsonlInstruction(chatty, source=str(tmp_path), messages=True, max_length=64).rows("train")


def test_a_template_that_refuses_a_chat_spoils_its_own_row_alone(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    model = Backbone(str(save_model(tmp_path / "strict", "llama", chat_template=strict)))
    system = [{"role": "system", "content": "Be brief."}, *turns("a", "b")]
    write_jsonl(tmp_path / "train.jsonl", [{"messages": turns("a", "b")}, {"messages": system}])
    data = JsonlInstruction(model, source=str(tmp_path), messages=True)
    with pytest.raises(FlexoraError, match="line 2: the chat template refuses it: no system"):
        data.rows("train")


def test_solved_examples_of_a_chat_are_turns(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "Say 1", "response": "1"}])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "Say 2", "response": "2"}])
    data = JsonlInstruction(chatty, source=str(tmp_path), chat_template=True, num_fewshot=1)
    text = "<user>Say 1<eos><assistant>1<eos><user>Say 2<eos><assistant>2<eos>"
    assert scored_text(data, data.reported_set[0]) == (text, "2<eos>")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Say 3"}, "messages is missing among prompt"),
        ({"messages": None}, "messages is not a list of turns"),
        ({"messages": "Say 3"}, "messages is not a list of turns"),
        ({"messages": []}, "messages is not a list of turns"),
        ({"messages": turns("a", "b")}, "the last turn is the assistant's; there is nothing to answer"),
    ],
)
def test_new_chats_that_are_none(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        JsonlInstruction(messages=True).new_reader()(row)
