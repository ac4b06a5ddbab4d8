"""The prompts on a card: what someone without flexora has to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexora.publish.prompts import prompt_lines
from tests.publish.conftest import publish


def lines(class_name: str, **options: Any) -> list[str]:
    """Of a class of flexora's."""
    return prompt_lines({"class_path": f"flexora.{class_name}", "init_args": options})


def test_the_card_shows_the_prompt(run_dir: Path) -> None:
    assert publish(run_dir) == 0
    card = (run_dir / "publish" / "README.md").read_text()
    assert "```text\nQuestion: {question}\nAnswer: {choice}\n```" in card
    assert 'which choice makes `" {choice}"` likeliest behind the rest.' in card


@pytest.mark.parametrize(
    ("class_name", "options", "text", "asked"),
    [
        (
            "ArcEasy",
            {"prompt_style": "letters"},
            "Question: {question}\nA. {choice A}\nB. {choice B}\nAnswer: {letter}",
            "which letter is likeliest",
        ),
        ("JsonlMultipleChoice", {"template": "Q: {stem} A:"}, "Q: {prompt} A: {choice}", "which choice makes"),
        ("JsonlInstruction", {"separator": "\n##\n"}, "{prompt}\n##\n{response}", 'writes `"{response}"` behind'),
        ("Gsm8k", {}, "Question: {question}\nAnswer: {steps}\n#### {number}", ", and ends it"),
        (
            "Piqa",
            {"chat_template": True},
            "user: Question: {goal}\nAnswer:\nassistant: {choice}",
            'makes `"{choice}"` likeliest behind the rest. The tokenizer\'s chat template writes the turns',
        ),
        (
            "WinoGrande",
            {},
            "{sentence before the gap}{choice} {rest of the sentence}",
            'makes `" {rest of the sentence}"` likeliest',
        ),
    ],
)
def test_every_style(class_name: str, options: dict[str, Any], text: str, asked: str) -> None:
    _, block, said = lines(class_name, **options)
    assert block == f"```text\n{text}\n```"
    assert asked in said


def test_a_mixture_has_a_prompt_for_every_benchmark_that_it_trains_on() -> None:
    found = lines("CommonsenseMixture", train_rows=9, weights={"BoolQ": 1, "Piqa": 2, "Siqa": 0})
    assert [line for line in found if line.startswith("Prompts")] == ["Prompts of BoolQ:", "Prompts of Piqa:"]
    assert "```text\n{passage}\nQuestion: {question}?\nAnswer: {choice}\n```" in found


def test_what_has_no_form() -> None:
    assert lines("JsonlInstruction", messages=True) == [
        "Rows are chats, written by the tokenizer's chat template; the assistant's turns are the answers. A template "
        "that names the day was given 26 Jul 2024."
    ]
    assert lines("Nothing") == ["What prompts look like, flexora.Nothing alone knows."]
    assert lines("ArcEasy", setting_of_another_version=1) == ["What prompts look like, flexora.ArcEasy alone knows."]


def test_no_template_ends_its_block() -> None:
    _, block, _ = lines("JsonlInstruction", separator="\n```\n")
    assert block == "````text\n{prompt}\n```\n{response}\n````"
