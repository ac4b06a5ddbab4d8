"""Greedy answers against a loop of single forward passes, whatever the prompts' lengths; stops; who wins."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedModel

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


#: What published models come with; and settings that would end, forbid or add tokens.
OWN_SETTINGS = {
    "repetition_penalty": {"repetition_penalty": 5.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "sampling": {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
    "suppress_tokens": {"suppress_tokens": list(range(200))},
    "several": {"num_beams": 3, "min_new_tokens": 5, "repetition_penalty": 1.2, "max_length": 7},
}


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_what_the_model_was_published_with_decides_nothing(name: str, adapted: bool) -> None:
    base = tiny_model("llama").eval()
    model = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False)).eval() if adapted else base
    expected = [greedy(model, prompt, 8, None) for prompt in PROMPTS]
    own = GenerationConfig(**OWN_SETTINGS[name], eos_token_id=257)
    base.generation_config = model.generation_config = own
    before = own.to_dict()
    assert generate(model, byte_tokenizer(), PROMPTS, max_new_tokens=8) == expected
    assert base.generation_config is own
    assert model.generation_config is own
    assert own.to_dict() == before


def test_the_models_own_ends_of_text_stay() -> None:
    model = tiny_model("llama").eval()
    (whole,) = generate(model, byte_tokenizer(), PROMPTS[:1], max_new_tokens=8)
    end = next(letter for letter in whole if letter.isascii())  # one token, unlike parts of others
    model.generation_config.eos_token_id = [257, *byte_tokenizer().encode(end, add_special_tokens=False)]
    assert generate(model, byte_tokenizer(), PROMPTS[:1], max_new_tokens=8) == [whole[: whole.index(end) + 1]]


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
