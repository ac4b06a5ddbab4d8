"""The packed layout: a golden row, and for random questions every choice read back out of its row."""

from __future__ import annotations

import random

import pytest
import torch

from flexora.data.batch import PADDING, PREFIX, Batch, answer_tokens, branch_mask, collate
from flexora.data.encoding import EncodedQuestion


def encoded(answer: int, *choices: tuple[list[int], int]) -> EncodedQuestion:
    sequences, starts = [list(ids) for ids, _ in choices], [start for _, start in choices]
    return EncodedQuestion(
        sequences=sequences, starts=starts, chars=[1] * len(choices), answer=answer, unscored=[], cut=0
    )


def random_question(rng: random.Random) -> EncodedQuestion:
    """Few token ids, so that contexts and answers often share tokens by chance."""
    context = rng.choices(range(3), k=rng.randint(1, 6))
    choices = []
    for _ in range(rng.randint(2, 5)):
        own = context if rng.random() < 0.6 else rng.choices(range(3), k=rng.randint(1, 6))
        choices.append((own + rng.choices(range(3), k=rng.randint(1, 4)), len(own)))
    return encoded(rng.randrange(len(choices)), *choices)


def test_golden_layout() -> None:
    question = encoded(1, ([7, 8, 9, 1], 3), ([7, 8, 9, 2, 3], 3), ([7, 8, 9, 2, 4, 5], 3))
    short = encoded(0, ([7, 1, 6], 2), ([7, 2, 6], 2))
    batch = collate([question, short], [40, 41], pad_token=99, all_choices=True)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 2, 2, 4], [7, 1, 2, 99, 99, 99]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 1, 0, 0, 0]]
    assert batch["segments"].tolist() == [[0, 0, 0, 2, 3, 3], [0, 1, 2, -1, -1, -1]]
    assert batch["source"].tolist() == [2, 2, 3, 2, 4, 5, 7, 8]
    assert batch["target"].tolist() == [1, 2, 3, 2, 4, 5, 6, 6]
    assert batch["choice"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4]
    assert (batch["rows"].tolist(), batch["choices"].tolist()) == ([40, 41], [3, 2])
    assert batch["branched"]
    assert batch["normalizer"] == 8.0


def test_what_all_choices_begin_with_is_read_once() -> None:
    batch = collate([encoded(0, ([7, 1, 2, 3, 4], 1), ([7, 1, 2, 5], 1))], [0], 99, all_choices=True)
    assert batch["input_ids"].tolist() == [[7, 1, 2, 3]]
    assert batch["source"].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch["target"].tolist() == [1, 2, 3, 4, 1, 2, 5]


@pytest.mark.parametrize("all_choices", [True, False], ids=["scoring", "training"])
def test_every_choice_can_be_read_back(all_choices: bool) -> None:
    rng = random.Random(0)
    for _ in range(60):
        questions = [random_question(rng) for _ in range(rng.randint(1, 4))]
        batch = collate(questions, range(len(questions)), 99, all_choices=all_choices)
        expected: list[tuple[list[int], list[int]]] = []
        for question in questions:
            wanted = range(len(question["sequences"])) if all_choices else [question["answer"]]
            expected += [(question["sequences"][i], question["sequences"][i][question["starts"][i] :]) for i in wanted]
        assert _read_back(batch) == [(tokens[:-1], answer) for tokens, answer in expected]
        assert batch["branched"] == all_choices


def _read_back(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """For each choice its input tokens and its targets, each checked to be predicted from its own last token."""
    found = []
    length = batch["input_ids"].shape[1]
    for row, count in enumerate(batch["choices"].tolist()):
        ids, segments = batch["input_ids"][row], batch["segments"][row]
        assert ((ids == 99) == (segments == PADDING)).all()
        for segment in range(1, count + 1):
            own = (segments == PREFIX) | (segments == segment)
            places = own.nonzero().flatten()
            assert batch["position_ids"][row][own].tolist() == list(range(len(places)))
            mine = batch["choice"] == len(found)
            targets = batch["target"][mine].tolist()
            start = len(places) + 1 - len(targets)
            assert batch["source"][mine].tolist() == [row * length + int(p) for p in places[start - 1 :]]
            found.append((ids[own].tolist(), targets))
    return found


@pytest.mark.parametrize("window", [None, 1, 3])
def test_branch_mask_by_hand(window: int | None) -> None:
    rng = random.Random(1)
    for _ in range(20):
        batch = collate([random_question(rng) for _ in range(3)], range(3), 99, all_choices=True)
        mask = branch_mask(batch, window)
        rows, length = batch["segments"].shape
        assert mask.shape == (rows, 1, length, length)
        for row in range(rows):
            segments, positions = batch["segments"][row].tolist(), batch["position_ids"][row].tolist()
            for query in range(length):
                found = set(mask[row, 0, query].nonzero().flatten().tolist())
                if segments[query] == PADDING:
                    assert query in found  # anything, but not nothing: its softmax would be NaN
                    continue
                seen = {key for key in range(query + 1) if segments[key] in (PREFIX, segments[query])}
                if window is not None:
                    seen = {key for key in seen if positions[query] - positions[key] < window}
                assert found == seen


def test_normalizer_and_answer_tokens() -> None:
    questions = [encoded(1, ([1, 2], 1), ([1, 2, 3, 4], 1)), encoded(0, ([1, 2, 3], 1), ([1, 5], 1))]
    assert [answer_tokens(question) for question in questions] == [3, 2]
    assert collate(questions, [0, 1], 0, all_choices=False)["normalizer"] == 5.0
    assert collate(questions, [0, 1], 0, all_choices=False, normalizer=12)["normalizer"] == 12.0
    torch.testing.assert_close(collate(questions, [0, 1], 0, all_choices=False)["choices"], torch.tensor([1, 1]))
