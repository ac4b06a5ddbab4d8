"""Solved examples and chat templates: what stands around a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.data.chat import encode_conversation, render, write_conversation
from flexora.data.encoding import encode, tokenize
from flexora.data.mmlu import Mmlu
from flexora.data.prompts import as_chat, as_messages, with_examples
from flexora.data.question import Pairs
from flexora.data.winogrande import WinoGrande
from flexora.errors import FlexoraError
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, save_model, write_jsonl

ONE = Pairs((("Question: one\nAnswer:", " a"), ("Question: one\nAnswer:", " b")), 1)


pytestmark = pytest.mark.usefixtures("own_cache")


def test_examples_stand_before_every_context() -> None:
    assert ONE.right == "Question: one\nAnswer: b"
    before = "Question: x\nAnswer: y\n\nQuestion: v\nAnswer: w\n\nQuestion: one\nAnswer:"
    pairs = with_examples(ONE, ["Question: x\nAnswer: y", "Question: v\nAnswer: w"])
    assert pairs == Pairs(((before, " a"), (before, " b")), 1)


def test_a_chat_template_writes_contexts_as_turns_of_the_user() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    context = "<user>Question: one\nAnswer:<eos><assistant>"
    assert as_chat(ONE, tokenizer).pairs == ((context, "a"), (context, "b"))


@pytest.mark.parametrize("end", ["assistant\n", "assistant\n\n", "assistant: ", "assistant"])
def test_what_opens_the_assistants_turn_is_read_and_not_scored(end: str) -> None:
    """The prompt is the one of an answer that the model writes itself, and the choice alone is scored."""
    tokenizer, literal = byte_tokenizer(), end.replace("\n", "\\n")
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "<{{ message['role'] }}>", f"{{{{ '{literal}' if message['role'] == 'assistant' else 'user:' }}}}"
    ).replace("<assistant>", end)
    pairs = as_chat(ONE, tokenizer)
    encoded = encode(pairs, tokenizer, 256)
    asked = render(as_messages(ONE.pairs[0][0]), tokenizer, opened=True)
    for ids, start, choice in zip(encoded["sequences"], encoded["starts"], ("a", "b"), strict=True):
        assert tokenizer.decode(ids[start:]) == choice
        assert ids[:start] == tokenizer.encode(asked, add_special_tokens=False)
    conversation = write_conversation(as_messages(*ONE.pairs[1]), tokenizer, every_turn=True)
    written = encode_conversation(conversation, tokenizer, 256, tokenize(conversation.texts(tokenizer), tokenizer))
    (ids,), (start,) = written["sequences"], written["starts"]
    assert encoded["starts"] == [start] * 2
    assert encoded["sequences"][1] == ids[: start + 1]
    assert encoded["chars"] == [1, 1]


def decoded(data: ArcEasy | Mmlu | WinoGrande, row: int = 0) -> list[str]:
    return [str(data.tokenizer.decode(ids)) for ids in data.reported_set[row]["sequences"]]


def test_reported_rows_alone_have_solved_examples(benchmark_folder: Path, tiny_models: dict[str, Path]) -> None:
    backbone = Backbone(str(tiny_models["llama"]))
    plain = ArcEasy(backbone, str(benchmark_folder), validation_rows=8)
    shots = ArcEasy(backbone, str(benchmark_folder), validation_rows=8, num_fewshot=2)
    texts, bare = decoded(shots), decoded(plain)
    (before,) = {text.removesuffix(own) for text, own in zip(texts, bare, strict=True)}
    first, second, end = before.split("\n\n")
    assert end == ""
    assert first != second
    rights = [row["sequences"][row["answer"]] for row in plain.rows("train")]
    assert {first, second} < {str(plain.tokenizer.decode(ids)) for ids in rights}
    assert shots.fingerprint == plain.fingerprint
    assert before != decoded(ArcEasy(backbone, str(benchmark_folder), num_fewshot=2, split_seed=1))[0][: len(before)]


def test_more_examples_than_rows(benchmark_folder: Path, tiny_models: dict[str, Path]) -> None:
    data = ArcEasy(Backbone(str(tiny_models["llama"])), str(benchmark_folder), num_fewshot=49)
    with pytest.raises(FlexoraError, match="the train split has 48 rows, but 49 are asked for"):
        _ = data.reported_set
    with pytest.raises(FlexoraError, match=r"data\.num_fewshot: -1 is too small"):
        ArcEasy(num_fewshot=-1)


def test_examples_of_partial_evaluation_are_whole_sentences(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    rows = [
        {"sentence": f"{name} saw _ in town.", "option1": "Ann", "option2": "Eve", "answer": "2"}
        for name in ("Bo", "Cy")
    ]
    write_jsonl(tmp_path / "train.jsonl", rows[:1])
    write_jsonl(tmp_path / "validation.jsonl", rows[1:])
    data = WinoGrande(Backbone(str(tiny_models["llama"])), str(tmp_path), num_fewshot=1)
    assert decoded(data) == [f"Bo saw Eve in town.\n\nCy saw {name} in town." for name in ("Ann", "Eve")]


def test_mmlu_shows_the_first_rows_of_the_subject(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    def row(subject: str, question: str) -> dict[str, object]:
        return {"question": question, "choices": ["w", "x", "y", "z"], "answer": 2, "subject": subject}

    listed = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    write_jsonl(tmp_path / "train.jsonl", [row("law", "L1"), row("art_x", "A1"), row("law", "L2"), row("art_x", "A2")])
    write_jsonl(tmp_path / "test.jsonl", [row("art_x", "A9"), row("law", "L9")])
    data = Mmlu(Backbone(str(tiny_models["llama"])), str(tmp_path), num_fewshot=1)
    title = "The following are multiple choice questions (with answers) about"
    assert decoded(data, 0)[1] == f"{title} art x.\n\nA1{listed} C\n\nA9{listed} B"
    assert decoded(data, 1)[3] == f"{title} law.\n\nL1{listed} C\n\nL9{listed} D"
    with pytest.raises(FlexoraError, match="Mmlu is for evaluation only"):
        _ = data.train_set


def test_chat_rows_go_through_encoding(benchmark_folder: Path, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    refused = ArcEasy(Backbone(str(tiny_models["llama"])), str(benchmark_folder), chat_template=True)
    with pytest.raises(FlexoraError, match=r"data\.chat_template: the tokenizer has no chat template"):
        refused.rows("train")
    model = save_model(tmp_path / "chatty", "llama", chat_template=CHAT_TEMPLATE)
    data = ArcEasy(Backbone(str(model)), str(benchmark_folder), chat_template=True)
    text = decoded(data)[0]
    assert text.startswith("<user>Question: 1000: which is ")
    assert "\nAnswer:<eos><assistant>" in text
    assert not text.endswith(">")
