"""The user's own rows: columns of any name, answers in every form, texts of any length."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flexora.backbone.loading import Backbone
from flexora.data.own import JsonlInstruction, JsonlMultipleChoice, choice_index
from flexora.errors import FlexoraError
from flexora.verbs.finetune import main
from tests.data.rows import CHOICES, COLUMNS, choice_rows, turns
from tests.tiny import recipe_text, write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.parametrize("template", ["Question:", "{stem.foo}"])
def test_templates_without_their_places(template: str) -> None:
    with pytest.raises(FlexoraError, match=r"data\.template: .* has (no place|a place other than) \{stem\}"):
        JsonlMultipleChoice(template=template)
