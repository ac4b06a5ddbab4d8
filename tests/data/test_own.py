"""The user's own rows: columns of any name, answers in every form, chats, and rows cut off for the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from flexora.backbone.loading import Backbone
from flexora.data.batch import collate
from flexora.data.chat import read_messages
from flexora.data.generative import until
from flexora.data.local_files import local_files
from flexora.data.own import JsonlInstruction, JsonlMultipleChoice, choice_index
from flexora.errors import FlexoraError
from flexora.verbs.finetune import main
from tests.tiny import CHAT_TEMPLATE, recipe_text, save_model, write_jsonl

CHOICES = ["red", "green", "A"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny model whose tokenizer has a chat template."""
    return Backbone(str(save_model(tmp_path_factory.mktemp("models") / "chatty", "llama", chat_template=CHAT_TEMPLATE)))


@pytest.mark.parametrize(
    ("answer", "first", "expected"),
    [("green", 0, 1), ("b", 0, 1), ("A", 0, 2), (0, 0, 0), (1, 1, 0), ("2", 0, 2), (" 3 ", 1, 2), (3, 0, 3)],
    ids=["text", "letter", "text before letter", "number", "from 1", "digits", "digits from 1", "beyond"],
)
def test_answers_in_every_form(answer: Any, first: int, expected: int) -> None:
    assert choice_index(answer, CHOICES, first) == expected


@pytest.mark.parametrize("answer", ["blue", 1.5, True, ["red"], "Z"])
def test_answers_that_mean_nothing(answer: Any) -> None:
    with pytest.raises(ValueError, match="is neither a choice, nor its letter, nor its number"):
        choice_index(answer, CHOICES, 0)


def choice_rows(count: int) -> list[dict[str, Any]]:
    return [{"q": f"Colour {number}?", "opts": CHOICES, "label": number % 3} for number in range(count)]


COLUMNS = {"prompt": "q", "choices": "opts", "answer": "label"}


def test_columns_are_mapped_and_templates_are_the_users(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", choice_rows(6))
    write_jsonl(tmp_path / "test.jsonl", [{"q": "Tint?", "opts": CHOICES, "label": "green"}])
    settings: dict[str, Any] = {"source": str(tmp_path), "columns": COLUMNS, "validation_rows": 2}
    data = JsonlMultipleChoice(chatty, template="Q: {stem}\nA:", **settings)
    texts = [data.tokenizer.decode(ids) for ids in data.reported_set[0]["sequences"]]
    assert texts == [f"Q: Tint?\nA: {choice}" for choice in CHOICES]
    assert data.reported_set["answer"] == [1]
    letters = JsonlMultipleChoice(chatty, prompt_style="letters", **settings)
    assert letters.tokenizer.decode(letters.reported_set[0]["sequences"][1]) == (
        "Tint?\nA. red\nB. green\nC. A\nAnswer: B"
    )
    with pytest.raises(FlexoraError, match=r"line 1: column prompt is missing among q, opts, label; map it with"):
        _ = JsonlMultipleChoice(chatty, source=str(tmp_path)).reported_set
    write_jsonl(tmp_path / "test.jsonl", [{"q": None, "opts": CHOICES, "label": "green"}])
    with pytest.raises(FlexoraError, match=r"line 1: column q holds nothing"):
        _ = JsonlMultipleChoice(chatty, **settings).reported_set
    with pytest.raises(
        FlexoraError, match=r"data\.columns: promt: q names no column of one of prompt, choices, answer"
    ):
        JsonlMultipleChoice(chatty, columns={"promt": "q"})
    with pytest.raises(FlexoraError, match=r"data\.template: '\{question\}' has a place other than \{stem\}"):
        JsonlMultipleChoice(chatty, template="{question}")


def test_all_rows_may_have_the_same_choices(tmp_path: Path, chatty: Backbone) -> None:
    (tmp_path / "train.csv").write_text("text,label\nGood.,1\nBad.,neg\n")
    settings: dict[str, Any] = {"columns": {"prompt": "text", "answer": "label"}, "choices": ["neg", "pos"]}
    data = JsonlMultipleChoice(chatty, source=str(tmp_path), **settings)
    rows = data.rows("train")
    assert rows["answer"] == [1, 0]
    assert [data.tokenizer.decode(ids) for ids in rows[1]["sequences"]] == ["Bad. neg", "Bad. pos"]
    assert data.new_row({"text": "So?"})["choices"] == ["neg", "pos"]
    asked = data.new_reader()({"text": "So?"}).pairs
    assert asked is not None
    assert asked.pairs == (("So?", " neg"), ("So?", " pos"))


@pytest.mark.parametrize(
    ("choices", "columns", "expected"),
    [
        (["neg"], {}, r"\['neg'\] are not two or more different labels; mend them"),
        (["neg", "neg"], {}, "are not two or more different labels"),
        (["neg", " "], {}, "are not two or more different labels"),
        (["neg", "pos"], {"choices": "opts"}, r"data\.columns\.choices names the choices of each row; remove one"),
    ],
)
def test_choices_of_all_rows_that_are_none(choices: list[str], columns: dict[str, Any], expected: str) -> None:
    with pytest.raises(FlexoraError, match=rf"^data\.choices: .*{expected}"):
        JsonlMultipleChoice(choices=choices, columns=columns)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub", "which rows of the hub? name hub:OWNER/NAME, or a folder of files"),
        ("packaged", "there are no packaged rows of this kind; name a folder, or hub:OWNER/NAME"),
    ],
)
def test_places_that_hold_no_rows_of_the_users(source: str, expected: str, chatty: Backbone) -> None:
    data = JsonlMultipleChoice(chatty, source=source)
    for ask in (data.check_source, lambda: data.train_split):
        with pytest.raises(FlexoraError, match=re.escape(f"data.source: {expected}")):
            ask()


def test_a_field_may_be_put_together_from_several_columns(tmp_path: Path, chatty: Backbone) -> None:
    row = {"instruction": "Sum up.", "input": "A tale.", "response": "Tale."}
    write_jsonl(tmp_path / "train.jsonl", [row, row | {"input": ""}, row | {"input": None}])
    data = JsonlInstruction(chatty, source=str(tmp_path), columns={"prompt": ["instruction", "input"]})
    prompts = [str(data.tokenizer.decode(ids[0])).split("\nTale.")[0] for ids in data.rows("train")["sequences"]]
    assert prompts == ["Sum up.\n\nA tale.", "Sum up.", "Sum up."]


def test_reported_rows_may_be_cut_from_the_train_split(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", choice_rows(12))
    settings: dict[str, Any] = {"source": str(tmp_path), "columns": COLUMNS, "validation_rows": 3}
    with pytest.raises(FlexoraError, match=r"has no test\.jsonl or .* or test\.parquet or test\.csv; add the file"):
        _ = JsonlMultipleChoice(chatty, **settings).reported_set
    data = JsonlMultipleChoice(chatty, test_rows=4, **settings)
    parts = [data.train_set, data.validation_set, data.reported_set]
    assert [len(part) for part in parts] == [5, 3, 4]
    assert data.scored_split == "set-aside train"  # no split of that name is there for others
    assert JsonlMultipleChoice(chatty, **settings).scored_split == "test"
    assert JsonlMultipleChoice(chatty, test_rows=4, development_rows=2, **settings).scored_split == "development"
    assert sorted(line for part in parts for line in part["line"]) == list(range(1, 13))
    again = JsonlMultipleChoice(chatty, test_rows=4, seed=9, **settings)
    assert again.reported_set["line"] == data.reported_set["line"]
    with pytest.raises(FlexoraError, match=r"data\.test_rows: 12 leaves none of 12 rows"):
        _ = JsonlMultipleChoice(chatty, test_rows=12, **settings).reported_set
    with pytest.raises(FlexoraError, match=r"data\.test_rows: 0 is too small"):
        JsonlMultipleChoice(chatty, test_rows=0)


@pytest.mark.parametrize(("reported", "file"), [("test", "test.jsonl"), ("validation", "validation.parquet")])
def test_rows_are_not_set_aside_beside_a_reported_split(reported: Any, file: str, tmp_path: Path) -> None:
    for name in ("train.jsonl", file):
        write_jsonl(tmp_path / name, choice_rows(12))
    data = JsonlMultipleChoice(source=str(tmp_path), reported_split=reported, test_rows=4)
    expected = rf"data\.test_rows: .*{file} is what is reported; leave test_rows out, and set data\.evaluate_rows"
    for ask in (data.check_source, lambda: data.raw("train"), lambda: data.raw(reported)):
        with pytest.raises(FlexoraError, match=expected):
            ask()


def test_a_validation_file_is_what_is_held_out(
    tmp_path: Path, chatty: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = choice_rows(20)
    write_jsonl(tmp_path / "train.jsonl", rows[:12])
    write_jsonl(tmp_path / "validation.jsonl", rows[10:17])
    write_jsonl(tmp_path / "test.jsonl", rows[16:])
    settings: dict[str, Any] = {"source": str(tmp_path), "columns": COLUMNS}

    def asked(part: datasets.Dataset) -> list[int]:
        texts = [str(chatty.load_tokenizer().decode(ids[0])) for ids in part["sequences"]]
        return [int(text.split()[1].rstrip("?")) for text in texts]

    data = JsonlMultipleChoice(chatty, validation_rows=200, **settings)
    assert asked(data.validation_set) == list(range(10, 16))  # 16 is reported
    assert sorted(asked(data.train_set)) == list(range(10))
    told = capsys.readouterr().err
    assert "2 train rows occur in the validation split and are left out: line 11, 12\n" in told
    assert "1 validation rows occur in the test split and are left out: line 7\n" in told

    few = JsonlMultipleChoice(chatty, validation_rows=3, train_rows=5, **settings)
    assert len(held := asked(few.validation_set)) == 3
    assert set(held) < set(range(10, 16))
    assert len(first := asked(few.train_set)) == 5
    train, validation = few.split(1)
    assert asked(validation) == held
    assert sorted(asked(train)) == sorted(first)
    draws = [JsonlMultipleChoice(chatty, validation_rows=3, train_seed=seed, **settings) for seed in range(4)]
    assert len({tuple(asked(draw.validation_set)) for draw in draws}) > 1
    with pytest.raises(FlexoraError, match=r"has 10 train rows, but train_rows 11 need 11; lower train_rows"):
        _ = JsonlMultipleChoice(chatty, train_rows=11, **settings).train_set

    reported = JsonlMultipleChoice(chatty, reported_split="validation", validation_rows=3, **settings)
    assert asked(reported.reported_set) == list(range(10, 17))
    assert set(asked(reported.validation_set)) < set(range(10))
    (tmp_path / "test.jsonl").unlink()
    cut = JsonlMultipleChoice(chatty, test_rows=4, **settings)
    parts = [set(asked(part)) for part in (cut.train_set, cut.validation_set, cut.reported_set)]
    assert len(parts[2]) == 4
    assert sum(map(len, parts)) == len(set.union(*parts)) == 17
    scored = JsonlMultipleChoice(chatty, test_rows=4, development_rows=3, **settings)
    parts = [set(asked(part)) for part in (scored.train_set, scored.validation_set, scored.reported_set)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 13
    write_jsonl(tmp_path / "test.jsonl", rows[10:17])
    with pytest.raises(FlexoraError, match="all validation rows are reported too; remove the file, or mend it"):
        _ = JsonlMultipleChoice(chatty, **settings).validation_set


@pytest.mark.parametrize(
    ("name", "settings", "read"),
    [
        ("arc.ArcEasy", {}, (["test"], ["test", "train"])),
        ("arc.ArcEasy", {"num_fewshot": 1}, (["test", "train"], ["test", "train"])),
        ("boolq.BoolQ", {}, (["validation"], ["train", "validation"])),
        ("own.JsonlInstruction", {"reported_split": "test"}, (["test"], ["test", "train", "validation"])),
        ("own.JsonlInstruction", {"reported_split": "validation"}, (["validation"], ["train", "validation"])),
    ],
)
def test_phases_know_the_files_that_they_read(
    name: str, settings: dict[str, Any], read: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", choice_rows(2))
    data = {"class_path": f"flexora.data.{name}", "init_args": {"source": str(tmp_path), **settings}}
    for trains in (False, True):
        before = local_files(data, trains=trains)
        assert sorted(before) == [f"{split}.jsonl" for split in read[trains]]
    assert len(set(before.values())) == 1
    write_jsonl(tmp_path / "train.jsonl", choice_rows(3))
    assert [file for file, value in local_files(data, trains=True).items() if value != before[file]] == ["train.jsonl"]
    file = {**settings, "source": str(tmp_path / "train.jsonl"), "test_rows": 1}
    assert list(local_files(data | {"init_args": file}, trains=False)) == ["train.jsonl"]
    for place in ("hub", "packaged", "hub:me/mine"):
        assert local_files(data | {"init_args": {**settings, "source": place}}, trains=True) == {}
    assert local_files(data | {"init_args": {"path": "a class of the user's"}}, trains=True) == {}
    mixture = {"class_path": "flexora.data.mixture.CommonsenseMixture", "init_args": {"source": str(tmp_path)}}
    (tmp_path / "BoolQ").mkdir()
    write_jsonl(tmp_path / "BoolQ" / "validation.jsonl", choice_rows(2))
    assert list(local_files(mixture, trains=False)) == ["BoolQ/validation.jsonl"]


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


def test_prompts_leave_room_for_an_answer_whatever_the_right_one_has(
    tmp_path: Path, chatty: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "x" * 40, "response": "y" * length} for length in (1, 9, 11)]
    write_jsonl(tmp_path / "test.jsonl", [*rows, {"prompt": "x", "response": "y"}])
    settings: dict[str, Any] = {"source": str(tmp_path), "exact_match": True, "max_length": 32}
    for chat in (False, True):
        data = JsonlInstruction(chatty, chat_template=chat, max_new_tokens=12, **settings)
        (batch, *_) = data.prompt_loader(data.reported_set.select(range(3)))
        assert {len(prompt) for prompt in batch["prompts"]} == {20}
        told = capsys.readouterr().err
        assert "[test]: 3 of 4 prompts lose their beginning to data.max_length 32 less data.max_new_tokens 12\n" in told
    with pytest.raises(FlexoraError, match=r"data\.max_new_tokens: 32 leaves no room for a prompt in data\.max_length"):
        _ = JsonlInstruction(chatty, max_new_tokens=32, **settings).reported_set


def test_many_long_prompts_are_answered_together(tmp_path: Path, chatty: Backbone) -> None:
    """A generated token costs little more in a dozen rows than in one; a loss on all of them would cost its logits."""
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "x" * (1000 + n), "response": "y"} for n in range(30)])
    settings: dict[str, Any] = {"source": str(tmp_path), "exact_match": True, "max_length": 2048}
    for evaluate_tokens, sizes in ((2048, [12, 12, 6]), (200, [1] * 30)):
        data = JsonlInstruction(chatty, evaluate_tokens=evaluate_tokens, **settings)
        answers, prompts = data.test_dataloader()
        batches = list(prompts)
        assert [len(batch["prompts"]) for batch in batches] == sizes
        assert sorted(row for batch in batches for row in batch["rows"].tolist()) == list(range(30))
        assert all(batch["input_ids"].shape[0] <= max(1, evaluate_tokens // 1000) for batch in answers)
    assert JsonlInstruction(chatty).evaluate_tokens == 2048


def test_generated_and_right_answers_end_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    model = Backbone(
        str(save_model(tmp_path / "ended", "llama", chat_template=CHAT_TEMPLATE.replace("<eos>", "\n### End\n")))
    )
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "How many?", "response": "42"}])
    data = JsonlInstruction(model, source=str(tmp_path), chat_template=True, exact_match=True, max_new_tokens=8)
    assert data.stops == ("### End",)
    assert data.matches(until("42\n### End\n###", data.stops), data.answers[0]) == {"exact_match": True}
    assert JsonlInstruction(model).stops == ()


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]


def sharegpt(*contents: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": content} for number, content in enumerate(contents)]


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


def test_a_file_of_one_array_is_cut_and_its_items_keep_their_numbers(tmp_path: Path, chatty: Backbone) -> None:
    rows: list[Any] = choice_rows(12)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows, indent=1))
    settings: dict[str, Any] = {"source": str(file), "columns": COLUMNS, "validation_rows": 3, "test_rows": 4}
    data = JsonlMultipleChoice(chatty, **settings)
    parts = [data.train_set, data.validation_set, data.reported_set]
    assert [len(part) for part in parts] == [5, 3, 4]
    assert sorted(number for part in parts for number in part["line"]) == list(range(1, 13))
    texts = [str(data.tokenizer.decode(ids[0])) for part in parts for ids in part["sequences"]]
    assert [int(text.split()[1].rstrip("?")) for text in texts] == [n - 1 for part in parts for n in part["line"]]
    for spoilt in data.train_set["line"][0], data.reported_set["line"][0]:
        file.write_text(json.dumps([row | {"label": "?"} if n == spoilt else row for n, row in enumerate(rows, 1)]))
        with pytest.raises(FlexoraError, match=rf"cannot be used \(row {spoilt}: answer '\?' is neither"):
            _ = (bad := JsonlMultipleChoice(chatty, **settings)).reported_set, bad.train_set


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
        (turns("a", "b", "c"), "the last turn is the user's, not the assistant's"),
        (turns("a", "b" * 200), "the last turn has 201 tokens, which max_length 64 cannot hold"),
    ],
)
def test_chats_that_are_none(messages: Any, expected: str, tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"messages": messages}])
    with pytest.raises(FlexoraError, match=expected):
        JsonlInstruction(chatty, source=str(tmp_path), messages=True, max_length=64).rows("train")


def test_a_text_that_yaml_took_for_a_comment(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(tiny_models["llama"], tmp_path, tmp_path / "run"))
    own = ["--data=JsonlInstruction", f"--data.source={tmp_path}"]
    with pytest.raises(FlexoraError, match=r"data\.separator: None is no text; where it begins with #, write it"):
        main(["--config", str(file), "--finetune.selection=all", *own, "--data.separator=### R:"])


@pytest.mark.parametrize("field", ["objective", "validation_objective"])
def test_free_answers_have_no_choices_to_contrast(field: str) -> None:
    with pytest.raises(FlexoraError, match=r"data\.objective: choices needs rows with choices"):
        JsonlInstruction(**{field: "choices"})


@pytest.mark.parametrize("choices", ["yes,no", {"text": ["a", "b"]}, 3], ids=["text", "mapping", "number"])
def test_choices_that_are_no_list(choices: Any, tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "Which?", "choices": choices, "answer": 0}])
    with pytest.raises(FlexoraError, match=r"line 1: choices is \w+, not a list of texts"):
        JsonlMultipleChoice(chatty, source=str(tmp_path)).rows("train")


def test_long_stretches_of_one_kind_of_row(tmp_path: Path, chatty: Backbone) -> None:
    """More rows than are written at once: the first ones must not decide what the columns hold."""
    chats = [{"messages": turns("a", "b")}] * 1_100 + [{"messages": turns("a", "b", "c", "d")}]
    write_jsonl(tmp_path / "train.jsonl", chats)
    assert len(JsonlInstruction(chatty, source=str(tmp_path), messages=True).rows("train")) == 1_101
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "x"}] * 1_100 + [{"prompt": "x", "response": "y"}])
    kept = JsonlInstruction(chatty, source=str(tmp_path), bad_rows="skip").rows("train")
    assert kept["line"] == [1_101]


@pytest.mark.parametrize("row", [{"prompt": "a", "response": "\ud800"}, {"prompt": "\udfff", "response": "b"}])
def test_half_a_surrogate_pair_spoils_its_own_row_alone(row: Any, tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a", "response": "b"}, row])
    kept = JsonlInstruction(chatty, source=str(tmp_path), bad_rows="skip").rows("train")
    assert kept["line"] == [1]


def test_a_template_that_refuses_a_chat_spoils_its_own_row_alone(tmp_path: Path) -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    model = Backbone(str(save_model(tmp_path / "strict", "llama", chat_template=strict)))
    system = [{"role": "system", "content": "Be brief."}, *turns("a", "b")]
    write_jsonl(tmp_path / "train.jsonl", [{"messages": turns("a", "b")}, {"messages": system}])
    data = JsonlInstruction(model, source=str(tmp_path), messages=True)
    with pytest.raises(FlexoraError, match="line 2: the chat template refuses it: no system"):
        data.rows("train")


def test_no_reported_row_stands_solved_before_itself(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", choice_rows(8))
    data = JsonlMultipleChoice(
        chatty, source=str(tmp_path), columns=COLUMNS, test_rows=4, num_fewshot=4, validation_rows=2
    )
    solved = {row["q"] for row in data.example_rows}
    texts = [str(data.tokenizer.decode(ids[0])) for ids in data.reported_set["sequences"]]
    asked = {text[text.rindex("Colour") :].split("?")[0] + "?" for text in texts}
    assert len(solved) == len(asked) == 4
    assert not solved & asked
    assert all(text.count("Colour") == 5 for text in texts)


def test_solved_examples_of_a_chat_are_turns(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "Say 1", "response": "1"}])
    write_jsonl(tmp_path / "test.jsonl", [{"prompt": "Say 2", "response": "2"}])
    data = JsonlInstruction(chatty, source=str(tmp_path), chat_template=True, num_fewshot=1)
    text = "<user>Say 1<eos><assistant>1<eos><user>Say 2<eos><assistant>2<eos>"
    assert scored_text(data, data.reported_set[0]) == (text, "2<eos>")


@pytest.mark.parametrize("template", ["Question:", "{stem.foo}"])
def test_templates_without_their_places(template: str) -> None:
    with pytest.raises(FlexoraError, match=r"data\.template: .* has (no place|a place other than) \{stem\}"):
        JsonlMultipleChoice(template=template)
