"""Order of rows: complete, a function of seed, epoch and step alone, and frugal with padding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.data.batching import GROUP, LengthGroupedBatches, RowStream, Share, group_rows, length_batches, permutation
from flexora.data.bilevel import OuterBatch

LENGTHS = np.random.default_rng(0).integers(5, 200, 1003).tolist()
ANSWERS = np.random.default_rng(1).integers(1, 9, 1003).tolist()


pytestmark = pytest.mark.usefixtures("own_cache")


def batches_of(epoch: int = 0, size: int = 8, accumulate: int = 3, seed: int = 0, **settings: Any) -> list[Any]:
    sampler = LengthGroupedBatches(LENGTHS, ANSWERS, size, accumulate=accumulate, seed=seed, **settings)
    sampler.sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@pytest.mark.parametrize("size", [1, 8, 17, 2000])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_row_comes_once_an_epoch(size: int, epoch: int) -> None:
    batches = batches_of(epoch, size)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(LENGTHS)))
    assert sum(len(batch.rows) != size for batch in batches) <= 1


def test_order_depends_on_seed_and_epoch_only() -> None:
    torch.manual_seed(0)
    first = batches_of(epoch=2, seed=5)
    torch.manual_seed(1)
    assert batches_of(epoch=2, seed=5) == first
    rows = [batch.rows for batch in first]
    assert [batch.rows for batch in batches_of(epoch=2, seed=5, accumulate=1)] == rows
    assert [batch.rows for batch in batches_of(epoch=3, seed=5)] != rows
    assert [batch.rows for batch in batches_of(epoch=2, seed=6)] != rows
    assert not np.array_equal(permutation(50, 1, 0), permutation(50, 0, 1))


@pytest.mark.parametrize("accumulate", [1, 3, 1000])
def test_normalizer_counts_the_answer_tokens_of_the_optimiser_step(accumulate: int) -> None:
    batches = batches_of(accumulate=accumulate)
    for start in range(0, len(batches), accumulate):
        step = batches[start : start + accumulate]
        tokens = sum(ANSWERS[row] for batch in step for row in batch.rows)
        assert {batch.normalizer for batch in step} == {tokens}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("settings", [{}, {"max_tokens": 900}], ids=["by rows", "by tokens"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_are_dealt_the_steps_of_one(world_size: int, settings: dict[str, int], accumulate: int) -> None:
    """Together they make the optimiser steps of one process that accumulates as much more, and as many passes each."""
    joint = batches_of(epoch=1, size=5, accumulate=accumulate * world_size, **settings)
    dealt = [
        batches_of(epoch=1, size=5, accumulate=accumulate, share=Share(rank, world_size), **settings)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in dealt}) == 1
    passes = [batch for together in zip(*dealt, strict=True) for batch in together]
    assert [batch for batch in passes if batch.normalizer < math.inf] == joint
    idle = len(passes) - len(joint)
    assert 0 <= idle < world_size
    assert idle or settings  # 201 batches do not divide
    assert all(batch.normalizer == math.inf for batch in passes[len(joint) :])


def test_batches_keep_to_a_budget_of_tokens() -> None:
    batches = batches_of(max_tokens=900, size=16)
    sizes = [len(batch.rows) * max(LENGTHS[row] for row in batch.rows) for batch in batches]
    assert max(sizes) <= 900
    assert {len(batch.rows) for batch in batches} >= {4, 16}  # long rows in fewer, short ones as many as allowed
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(LENGTHS)))
    later = batches_of(epoch=1, max_tokens=900, size=16)
    assert later != batches  # the order alone: an epoch that had more batches than the first would be cut off
    assert sorted(sorted(batch.rows) for batch in later) == sorted(sorted(batch.rows) for batch in batches)
    assert [batch.rows for batch in batches_of(max_tokens=1, size=16)].count([LENGTHS.index(max(LENGTHS))]) == 1


def padding(batches: list[list[int]]) -> int:
    return sum(sum(max(LENGTHS[row] for row in rows) - LENGTHS[row] for row in rows) for rows in batches)


def test_grouped_batches_waste_less_padding() -> None:
    order = permutation(len(LENGTHS), 0, 0).tolist()
    random_order = padding([order[start : start + 2] for start in range(0, len(order), 2)])
    assert padding([batch.rows for batch in batches_of(size=2)]) < random_order / 5
    assert padding(length_batches(LENGTHS, 2)) < random_order / 5
    assert len(LENGTHS) > 2 * GROUP * 2  # the groups are several, and shuffled among each other


def test_batches_of_like_length_start_with_the_longest() -> None:
    batches = length_batches(LENGTHS, 16)
    assert [LENGTHS[row] for rows in batches for row in rows] == sorted(LENGTHS, reverse=True)
    assert sorted(row for rows in batches for row in rows) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("start", [0, 3, 6, 7, 20, 34])
@pytest.mark.parametrize("size", [1, 7, 8, 30])
def test_a_stream_is_its_epochs_one_after_another(start: int, size: int) -> None:
    endless = np.concatenate([permutation(7, 4, epoch) for epoch in range(12)])
    assert RowStream(7, 4).take(start, size).tolist() == endless[start : start + size].tolist()
    assert sorted(RowStream(7, 4).take(start - start % 7, 7).tolist()) == list(range(7))


def test_drawn_rows_are_grouped_by_length_in_an_order_of_the_seed() -> None:
    rows = permutation(len(LENGTHS), 3, 0)[:64]
    groups = group_rows(rows, np.asarray(LENGTHS), 8, seed=(1, 2))
    assert sorted(row for group in groups for row in group) == sorted(rows.tolist())
    by_length = sorted((LENGTHS[row] for row in rows), reverse=True)
    assert sorted(([LENGTHS[r] for r in group] for group in groups), reverse=True) == [
        by_length[start : start + 8] for start in range(0, 64, 8)
    ]
    assert group_rows(rows, np.asarray(LENGTHS), 8, seed=(1, 2)) == groups
    assert group_rows(rows, np.asarray(LENGTHS), 8, seed=(1, 3)) != groups


def same(left: OuterBatch, right: OuterBatch) -> bool:
    batches = [[*(b for step in item["train"] for b in step), *item["validation"]] for item in (left, right)]
    return all(
        torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key]))  # type: ignore[literal-required]
        for a, b in zip(*batches, strict=True)
        for key in a
    )


def test_outer_batches_are_a_function_of_step_and_seed(tiny_models: dict[str, Path], benchmark_folder: Path) -> None:
    def outer(seed: int) -> Any:
        rows = ArcEasy(
            Backbone(str(tiny_models["llama"])), str(benchmark_folder), validation_rows=10, max_length=64, seed=seed
        )
        loader = rows.bilevel(outer_steps=6, inner_steps=2, batch_size=4, accumulate=3, validation_batches=2)
        return loader.train_dataloader(), rows

    loader, rows = outer(seed=3)
    in_order = list(loader)
    assert len(in_order) == 6
    again = outer(seed=3)[0].dataset
    assert all(same(again[step], in_order[step]) for step in (5, 0, 3, 3))
    assert not same(in_order[0], in_order[1])
    assert not same(outer(seed=4)[0].dataset[0], in_order[0])
    for item in in_order:
        assert [len(step) for step in item["train"]] == [3, 3]
        assert [len(batch["rows"]) for batch in item["validation"]] == [4, 4]
    drawn = [row for item in in_order for step in item["train"] for batch in step for row in batch["rows"].tolist()]
    size = len(rows.train_set)
    assert sorted(drawn[:24]) == sorted(RowStream(size, 3).take(0, 24).tolist())
    assert len(set(drawn)) == size  # 144 draws from 38 rows: each came

    def texts(part: Any) -> set[str]:
        return {str(row["sequences"]) for row in part}

    assert texts(rows.train_set).isdisjoint(texts(rows.validation_set))
