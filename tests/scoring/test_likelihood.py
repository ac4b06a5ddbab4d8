"""Packed log-likelihoods against one sequence at a time, and the answer-only loss against transformers' own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from flexora.data.batch import Batch, collate, terms
from flexora.data.encoding import EncodedQuestion, encode
from flexora.data.question import Pairs
from flexora.scoring.likelihood import answer_loss, choice_log_likelihoods, token_log_likelihoods
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

pytestmark = pytest.mark.usefixtures("float64_throughout")

CLOSE = {"rtol": 0.0, "atol": 1e-10}
#: Family, overrides and attention; a window of 6 is shorter than every prompt below, and Llama's class has none.
MODELS = [
    pytest.param(family, overrides, attention, id=f"{name}-{attention}")
    for name, family, overrides in (
        *((family, family, {}) for family in FAMILIES),
        ("window", "mistral", {"sliding_window": 6}),
        ("stray window", "llama", {"sliding_window": 6, "final_logit_softcapping": 4.0}),
    )
    for attention in ("sdpa", "eager")
    if (family, attention) != ("gemma2", "sdpa")
]


def model_of(family: str, attention: str | None = None, **overrides: Any) -> PreTrainedModel:
    """Large random weights: what a token sees moves its logits by whole units."""
    model = tiny_model(family, layers=3, initializer_range=0.4, attn_implementation=attention, **overrides)
    assert attention in (None, model.config._attn_implementation)
    return model.double().eval()


def shared(context: str, *continuations: str) -> Pairs:
    return Pairs(tuple((context, continuation) for continuation in continuations), answer=1)


QUESTIONS = {
    "shared prompt": shared("Question: which one?\nAnswer:", " the oak", " elm", " a very tall fir", " ash"),
    "differing prompts": Pairs((("The dog fed Al as Al", " was hungry."), ("The dog fed Al as he", " was hungry.")), 0),
    "differing lengths of prompts": Pairs((("The dog fed Bob as B", " ran."), ("The dog fed Bob as Ann", " ran.")), 1),
    "nothing in common": Pairs((("Ann was thirsty and", " drank"), ("Bob was hungry and", " drank")), 1),
    "one token": shared("Pick a letter: ask", "x", "y", "z"),
    "prefix of another": shared("Is it so? It is", " no", " not", " nothing", " no"),
    "no prompt": shared("", "yes", "no", "yesterday"),
}


def batch_of(questions: list[Pairs], *, all_choices: bool) -> tuple[list[EncodedQuestion], Batch]:
    tokenizer = byte_tokenizer()
    encoded = [encode(question, tokenizer, 64) for question in questions]
    return encoded, collate(encoded, range(len(encoded)), pad_token=257, all_choices=all_choices)


@torch.no_grad()
def one_at_a_time(model: PreTrainedModel, questions: list[EncodedQuestion]) -> list[float]:
    """The plain model on each choice alone: no padding, no packing, no masks."""
    found = []
    for question in questions:
        for ids, start in zip(question["sequences"], question["starts"], strict=True):
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            found.append(sum(float(logs[place - 1, ids[place]]) for place in range(start, len(ids))))
    return found


@pytest.mark.parametrize(("family", "overrides", "attention"), MODELS)
def test_packed_choices_equal_one_sequence_at_a_time(family: str, overrides: dict[str, int], attention: str) -> None:
    model = model_of(family, attention, **overrides)
    batches = [[question] for question in QUESTIONS.values()] + [list(QUESTIONS.values())]
    for questions in batches:
        encoded, batch = batch_of(questions, all_choices=True)
        expected = torch.tensor(one_at_a_time(model, encoded), dtype=torch.float64)
        with torch.no_grad():
            found = choice_log_likelihoods(model, batch)
        torch.testing.assert_close(found, expected, **CLOSE)
    assert found.std() > 1  # the numbers differ from each other by far more than the tolerance


@pytest.mark.parametrize("name", ["shared prompt", "differing prompts", "nothing in common", "prefix of another"])
def test_choices_would_see_each_other_without_the_branch_mask(name: str) -> None:
    """The comparison above has teeth: plain causal attention over the packed row fails it widely."""
    model = model_of("llama")
    encoded, batch = batch_of([QUESTIONS[name]], all_choices=True)
    expected = torch.tensor(one_at_a_time(model, encoded), dtype=torch.float64)
    batch["branched"] = False
    with torch.no_grad():
        found = choice_log_likelihoods(model, batch)
    assert (found - expected).abs().max() > 1e-2


def test_random_questions() -> None:
    rng = random.Random(0)
    model = model_of("mistral", sliding_window=6)
    for _ in range(8):
        encoded = []
        for _ in range(rng.randint(1, 3)):
            context = rng.choices(range(2), k=rng.randint(1, 9))
            choices = []
            for _ in range(rng.randint(2, 4)):
                own = context if rng.random() < 0.5 else rng.choices(range(2), k=rng.randint(1, 9))
                choices.append((own + rng.choices(range(2), k=rng.randint(1, 4)), len(own)))
            sequences, starts = map(list, zip(*choices, strict=True))
            encoded.append(
                EncodedQuestion(
                    sequences=sequences, starts=starts, chars=[1] * len(choices), answer=0, unscored=[], cut=0
                )
            )
        batch = collate(encoded, range(len(encoded)), pad_token=257, all_choices=True)
        with torch.no_grad():
            found = choice_log_likelihoods(model, batch)
        torch.testing.assert_close(found, torch.tensor(one_at_a_time(model, encoded), dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize(("family", "overrides", "attention"), MODELS)
def test_answer_loss_equals_the_loss_of_transformers(family: str, overrides: dict[str, int], attention: str) -> None:
    model = model_of(family, attention, **overrides)
    encoded, batch = batch_of(list(QUESTIONS.values()), all_choices=False)
    rows = [(row["sequences"][row["answer"]], row["starts"][row["answer"]]) for row in encoded]
    width = max(len(ids) for ids, _ in rows)
    labels = torch.tensor([[-100] * start + ids[start:] + [-100] * (width - len(ids)) for ids, start in rows])
    reference = model(
        input_ids=torch.tensor([ids + [257] * (width - len(ids)) for ids, _ in rows]),
        attention_mask=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
        labels=labels,
    ).loss
    count = int((labels != -100).sum())
    assert len(batch["target"]) == batch["normalizer"] == count
    loss = answer_loss(model, batch)
    torch.testing.assert_close(loss, reference * count, **CLOSE)
    weights = [model.get_input_embeddings().weight, model.get_decoder().layers[0].self_attn.q_proj.weight]
    mine, theirs = torch.autograd.grad(loss, weights), torch.autograd.grad(reference * count, weights)
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("all_choices", [True, False], ids=["scoring", "training"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_runs_on_supervised_positions_alone(family: str, all_choices: bool) -> None:
    model = model_of(family)
    encoded, batch = batch_of(list(QUESTIONS.values()), all_choices=all_choices)
    wanted = [range(len(row["sequences"])) if all_choices else [row["answer"]] for row in encoded]
    supervised = sum(
        len(row["sequences"][i]) - row["starts"][i]
        for row, choices in zip(encoded, wanted, strict=True)
        for i in choices
    )
    shapes: list[tuple[int, ...]] = []
    handle = model.lm_head.register_forward_hook(lambda _module, inputs, _output: shapes.append(inputs[0].shape))
    token_log_likelihoods(model, batch)
    handle.remove()
    assert shapes == [(supervised, model.config.hidden_size)]


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("gemma2", "final_logit_softcapping", None),
        ("gemma2", "attn_logit_softcapping", None),
        ("gemma3", "final_logit_softcapping", None),
        ("gemma2", "sliding_window", 64),
        ("gemma3", "sliding_window", 64),
        ("qwen2", "sliding_window", 64),
    ],
)
def test_caps_and_windows_move_the_log_likelihoods(family: str, setting: str, value: int | None) -> None:
    """The comparisons above have teeth: without the setting the numbers are others."""
    _, batch = batch_of(list(QUESTIONS.values()), all_choices=True)
    with torch.no_grad():
        kept, lost = (choice_log_likelihoods(model_of(family, **changed), batch) for changed in ({}, {setting: value}))
    assert (kept - lost).abs().max() > 1e-2


def test_half_precision_models_give_float32_log_likelihoods() -> None:
    _, batch = batch_of(list(QUESTIONS.values()), all_choices=True)
    assert token_log_likelihoods(tiny_model("llama").bfloat16(), batch).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_contrasted_choices_are_a_softmax_over_their_log_likelihoods(family: str) -> None:
    model = tiny_model(family).double().eval()
    encoded, _ = batch_of(list(QUESTIONS.values()), all_choices=True)
    batch = collate(encoded, range(len(encoded)), pad_token=257, all_choices=True, contrast=True)
    assert terms(batch) == batch["normalizer"] == len(encoded)
    expected = 0.0
    with torch.no_grad():
        for question in encoded:
            scores = torch.tensor(one_at_a_time(model, [question]), dtype=torch.float64)
            expected -= float(scores.log_softmax(0)[question["answer"]])
    assert answer_loss(model, batch).item() == pytest.approx(expected, rel=1e-9)
