"""Batches for the answer-only head: packed choices, and flat indices of the positions that predict an answer token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flexora.data.encoding import EncodedQuestion

PADDING = -1
PREFIX = 0


class Batch(TypedDict):
    """Rows of tokens in which several choices may share one prompt.

    A row is ``[prefix | choice 1 | choice 2 | ...]``: the prefix is computed once, and choices do not see each other.
    The last token of a choice predicts nothing and is left out.

    Attributes:
        input_ids: Token ids, ``[rows, length]``.
        position_ids: Position of each token in its own (context, continuation) sequence, ``[rows, length]``.
        segments: 0 for the prefix, k for the k-th choice, -1 for padding, ``[rows, length]``.
        source: Index into the flattened ``[rows * length]`` of each position that predicts an answer token, ``[m]``.
        target: The answer token it should predict, ``[m]``.
        choice: The choice it belongs to, numbered through the batch, ``[m]``.
        rows: Index of each row in its dataset, ``[rows]``.
        choices: Number of choices of each row in this batch, ``[rows]``.
        answers: The right choice of each row, numbered within the row, ``[rows]``.
        contrast: Whether the loss is the cross-entropy of the choices, and not that of the answer tokens.
        branched: Whether choices share a prompt here, so that plain causal attention would let them see each other.
        normalizer: Terms of the loss in the whole optimiser step, over accumulation and devices: a sum of losses
            divided by it is the step's mean. See :func:`terms`.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    source: Tensor
    target: Tensor
    choice: Tensor
    rows: Tensor
    choices: Tensor
    answers: Tensor
    contrast: bool
    branched: bool
    normalizer: float


def terms(batch: Batch) -> int:
    """Number of terms that the batch's loss sums: answer tokens, or questions where choices are contrasted."""
    return len(batch["rows"]) if batch["contrast"] else batch["target"].numel()


def answer_tokens(question: EncodedQuestion) -> int:
    """Number of tokens of the right answer."""
    answer = question["answer"]
    return len(question["sequences"][answer]) - question["starts"][answer] - len(question["unscored"])


def packed_length(question: EncodedQuestion) -> int:
    """Tokens of a row that holds every choice of a question."""
    return len(_pack(question, all_choices=True).ids)


def collate(
    questions: Sequence[EncodedQuestion],
    rows: Sequence[int],
    pad_token: int,
    *,
    all_choices: bool,
    contrast: bool = False,
    normalizer: float = 0,
) -> Batch:
    """Pack questions into a batch.

    Args:
        questions: Encoded questions.
        rows: Their indices in the dataset.
        pad_token: Token id that fills short rows.
        all_choices: Pack every choice (scoring) or the right one alone (training).
        contrast: Train on the cross-entropy of the choices; it needs all of them.
        normalizer: Terms of the loss in the whole optimiser step; 0 stands for those of this batch.
    """
    packed = [_pack(question, all_choices) for question in questions]
    length = max(len(row.ids) for row in packed)
    choices = [row.choices for row in packed]
    first = np.cumsum([0, *choices])

    def padded(column: str, fill: int) -> Tensor:
        rows = [torch.from_numpy(getattr(row, column)) for row in packed]
        return pad_sequence(rows, batch_first=True, padding_value=fill)

    batch = Batch(
        input_ids=padded("ids", pad_token),
        position_ids=padded("positions", 0),
        segments=padded("segments", PADDING),
        source=torch.from_numpy(np.concatenate([row.source + place * length for place, row in enumerate(packed)])),
        target=torch.from_numpy(np.concatenate([row.target for row in packed])),
        choice=torch.from_numpy(np.concatenate([row.choice + first[place] for place, row in enumerate(packed)])),
        rows=torch.tensor(rows),
        choices=torch.tensor(choices),
        answers=torch.tensor([question["answer"] if all_choices else 0 for question in questions]),
        contrast=contrast,
        branched=max(choices) > 1,
        normalizer=float(normalizer),
    )
    batch["normalizer"] = float(normalizer or terms(batch))
    return batch


@dataclass(frozen=True)
class _Row:
    """A packed question: its tokens with their places, ``[length]``, and its predictions, ``[m]``."""

    ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    source: np.ndarray
    target: np.ndarray
    choice: np.ndarray
    choices: int


def _pack(question: EncodedQuestion, all_choices: bool) -> _Row:
    """Lay one question out; whole arrays at a time, for it is done in every step."""
    wanted = range(len(question["sequences"])) if all_choices else [question["answer"]]
    sequences = [np.asarray(question["sequences"][index], dtype=np.int64) for index in wanted]
    starts = [question["starts"][index] for index in wanted]
    # What all choices begin with is read once, too: the solutions of PIQA often differ in a single word.
    prefix = _shared(sequences) if len(sequences) > 1 else starts[0]
    unscored = np.asarray(question["unscored"], dtype=np.int64)
    ids, positions, segments = [sequences[0][:prefix]], [np.arange(prefix)], [np.full(prefix, PREFIX)]
    source, target, choice = [], [], []
    length = prefix
    for index, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        scored = np.setdiff1d(np.arange(start, len(sequence)), unscored, assume_unique=True)
        before = scored - 1
        source.append(np.where(before < prefix, before, before + length - prefix))
        target.append(sequence[scored])
        choice.append(np.full(len(scored), index))
        own = np.arange(prefix, len(sequence) - 1)  # the last token is only predicted
        ids.append(sequence[own])
        positions.append(own)
        segments.append(np.full(len(own), index + 1))
        length += len(own)
    return _Row(
        ids=np.concatenate(ids),
        positions=np.concatenate(positions),
        segments=np.concatenate(segments),
        source=np.concatenate(source),
        target=np.concatenate(target),
        choice=np.concatenate(choice),
        choices=len(sequences),
    )


def _shared(sequences: Sequence[np.ndarray]) -> int:
    """Number of tokens that all sequences begin with, their last ones, which are only predicted, left aside."""
    length = min(map(len, sequences)) - 1
    differs = np.any([sequence[:length] != sequences[0][:length] for sequence in sequences], axis=0)
    return int(differs.argmax()) if differs.any() else length


def branch_mask(batch: Batch, window: int | None = None) -> Tensor:
    """Which token may attend to which, ``[rows, 1, length, length]``, boolean.

    A token sees itself and what comes before it in its prefix and in its own choice.

    Args:
        batch: The batch.
        window: Sliding-window length of the model's attention, if it has one.
    """
    segments, positions = batch["segments"], batch["position_ids"]
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    key, query = segments[:, None, :], segments[:, :, None]
    mask = causal & ((key == PREFIX) | (key == query)) & (key != PADDING)
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    # Padding attends to itself: a softmax over nothing would be NaN.
    mask |= torch.eye(length, dtype=torch.bool, device=segments.device)
    return mask[:, None]
