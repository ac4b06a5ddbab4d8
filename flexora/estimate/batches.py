"""The batches that a phase needs most memory for: from its own rows where they can be had, else assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flexora.data.batch import Batch, collate, terms
from flexora.data.batching import MicroBatch, length_batches
from flexora.data.bilevel import OuterBatch
from flexora.data.datamodule import AnswerDataModule
from flexora.data.encoding import EncodedQuestion
from flexora.data.rows import EncodedRows
from flexora.errors import FlexoraError
from flexora.places import own_path
from flexora.search.module import SearchModule

#: Share of an assumed row that is its answer.
ANSWER = 1 / 8


def has_rows(data: AnswerDataModule) -> bool:
    """Whether rows and tokenizer are at hand, so that batches need not be assumed; the hub is not asked for rows.

    Raises:
        FlexoraError: If the source is a local or a packaged one that is not there.
    """
    data.check_source()
    if data.source != "packaged" and not own_path(data.source, "data.source").exists():
        return False
    try:
        return data.tokenizer is not None
    except FlexoraError:  # a folder with nothing but a configuration
        return False


def finetune_batches(data: AnswerDataModule) -> list[Batch]:
    """Of the first epoch the batch with most tokens, and the one with most terms of the loss."""
    loader: Any = data.train_dataloader()
    batches = [micro.rows for micro in loader.batch_sampler]
    return _fetch(loader.dataset, batches, loader.dataset.terms)


def evaluation_batches(data: AnswerDataModule) -> list[Batch]:
    """Of every benchmark's reported rows the batch with most tokens, and the one with most answer tokens."""
    found = []
    for part in data.parts:
        rows = EncodedRows(part.reported_set, part.pad_token, all_choices=True)
        found += _fetch(rows, length_batches(rows.lengths, max_tokens=part.evaluate_tokens), _choice_tokens(rows))
    return found


def search_batches(data: AnswerDataModule, search: SearchModule) -> list[OuterBatch]:
    """The outer step whose largest micro-batch has most tokens, and the one whose has most terms of the loss."""
    steps = data.bilevel(
        search.outer_steps,
        search.inner_steps,
        search.batch_size,
        search.accumulate,
        search.validation_batches,
        search.repeats,
    ).train_dataloader()
    largest: dict[str, tuple[int, OuterBatch]] = {}
    for step in steps:
        for name, count in (("tokens", tokens), ("terms", terms)):
            size = max(map(count, micro_batches(step)))
            if name not in largest or size > largest[name][0]:
                largest[name] = (size, step)
    (_, first), (_, second) = largest.values()
    return [first] if first is second else [first, second]


def assumed_step(data: AnswerDataModule, search: SearchModule, length: int) -> OuterBatch:
    """An outer step of rows of one length."""
    train, validation = (
        assumed_batch(search.batch_size, length, choices=objective == "choices")
        for objective in (data.objective, data.validation_objective)
    )
    inner = [[train] * search.accumulate] * search.inner_steps
    return OuterBatch(outer_step=0, train=inner, validation=[validation] * search.validation_batches)


def assumed_batch(rows: int, length: int, *, choices: bool) -> Batch:
    """Rows of one length, of which a share is answer.

    Args:
        rows: Number of rows.
        length: Tokens of each.
        choices: Whether a row holds two choices behind a prompt that they share, or one answer.
    """
    answer = max(1, int(length * ANSWER))
    parts = 2 if choices else 1
    start = max(1, length - answer)
    share = max(1, (length - start) // parts)
    # The last token of a choice is only predicted; the first one differs, or the choices would share it.
    sequences = [[0] * start + [part] * (share + 1) for part in range(parts)]
    question = EncodedQuestion(
        sequences=sequences, starts=[start] * parts, chars=[1] * parts, answer=0, unscored=[], cut=0
    )
    return collate([question] * rows, list(range(rows)), 0, all_choices=choices, contrast=False)


def micro_batches(step: OuterBatch) -> list[Batch]:
    """All micro-batches of an outer step, those of the outer objective last."""
    return [*(batch for batches in step["train"] for batch in batches), *step["validation"]]


def tokens(batch: Batch) -> int:
    """Tokens of a batch, padding included."""
    return batch["input_ids"].numel()


def _fetch(rows: Any, batches: Sequence[Sequence[int]], terms: Any) -> list[Batch]:
    """The batch with most tokens and the one with most terms, which may be the same."""
    lengths, counts = np.asarray(rows.lengths), np.asarray(terms)
    padded = [len(batch) * int(lengths[batch].max()) for batch in batches]
    largest = {int(np.argmax(padded)), int(np.argmax([counts[batch].sum() for batch in batches]))}
    return [rows.__getitems__(MicroBatch(list(batches[place]), 0)) for place in sorted(largest)]


def _choice_tokens(rows: EncodedRows) -> list[int]:
    """Answer tokens of all choices of each row."""
    columns = zip(rows.data["sequences"], rows.data["starts"], strict=True)
    return [sum(map(len, sequences)) - sum(starts) for sequences, starts in columns]
