"""Greedy answers against a loop of single forward passes, whatever the prompts' lengths; stops; who wins."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from flexora.data.generative import until
from flexora.scoring.generation import generate
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

PROMPTS = [[72, 105], list(b"a longer prompt"), [33]]


def greedy(model: PreTrainedModel, prompt: list[int], count: int, stop: str | None) -> str:
    """One token at a time, the whole prefix each time."""
    tokenizer, ids = byte_tokenizer(), list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        text = str(tokenizer.decode(ids[len(prompt) :]))
        if stop and stop in text:
            return text[: text.index(stop)]
    return str(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_text_is_the_greedy_one(family: str) -> None:
    model = tiny_model(family).eval()
    model.generation_config.do_sample = True  # what a model's own settings say does not matter
    model.config.use_cache = False
    texts = generate(model, byte_tokenizer(), PROMPTS, max_new_tokens=6)
    assert texts == [greedy(model, prompt, 6, None) for prompt in PROMPTS]
    assert all(texts)


def test_a_tokenizer_without_padding() -> None:
    model, tokenizer = tiny_model("llama").eval(), byte_tokenizer()
    padded = generate(model, tokenizer, PROMPTS, max_new_tokens=4)
    tokenizer.pad_token = None
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=4) == padded


def test_a_stop_ends_the_answer() -> None:
    model, tokenizer = tiny_model("llama").eval(), byte_tokenizer()
    (whole,) = generate(model, tokenizer, PROMPTS[1:2], max_new_tokens=8)
    stop = whole[3:5]
    assert generate(model, tokenizer, PROMPTS[1:2], max_new_tokens=8, stop=[stop, "never"]) == [
        whole[: whole.index(stop)]
    ]


def test_the_first_of_several_stops_counts() -> None:
    assert until("one two three", ["three", "two"]) == "one "
    assert until("one", ["two"]) == "one"
