"""Batches for the answer-only head: packed choices, and flat indices of the positions that predict an answer token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TypedDict

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
    return len(_pack(question, all_choices=True)[0])


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
    length = max(len(ids) for ids, *_ in packed)
    source: list[int] = []
    target: list[int] = []
    choice: list[int] = []
    choices = [row_choices for *_, row_choices in packed]
    for row, (_, _, _, predictions, _) in enumerate(packed):
        first_choice = sum(choices[:row])
        for position, token, index in predictions:
            source.append(row * length + position)
            target.append(token)
            choice.append(first_choice + index)

    def padded(column: int, fill: int) -> Tensor:
        return pad_sequence([torch.tensor(row[column]) for row in packed], batch_first=True, padding_value=fill)

    batch = Batch(
        input_ids=padded(0, pad_token),
        position_ids=padded(1, 0),
        segments=padded(2, PADDING),
        source=torch.tensor(source),
        target=torch.tensor(target),
        choice=torch.tensor(choice),
        rows=torch.tensor(rows),
        choices=torch.tensor(choices),
        answers=torch.tensor([question["answer"] if all_choices else 0 for question in questions]),
        contrast=contrast,
        branched=max(choices) > 1,
        normalizer=float(normalizer),
    )
    batch["normalizer"] = float(normalizer or terms(batch))
    return batch


Packed = tuple[list[int], list[int], list[int], list[tuple[int, int, int]], int]


def _pack(question: EncodedQuestion, all_choices: bool) -> Packed:
    """Lay one question out as token ids, positions, segments, predictions (position, token, choice), and choices."""
    wanted = range(len(question["sequences"])) if all_choices else [question["answer"]]
    sequences = [question["sequences"][index] for index in wanted]
    starts = [question["starts"][index] for index in wanted]
    # Last tokens are only predicted.
    shared = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(ids[:-1] for ids in sequences), strict=False))
    # What all choices begin with is read once, too: the solutions of PIQA often differ in a single word.
    prefix = sum(1 for _ in shared) if len(sequences) > 1 else starts[0]
    ids, positions, segments = list(sequences[0][:prefix]), list(range(prefix)), [PREFIX] * prefix
    predictions: list[tuple[int, int, int]] = []
    unscored = set(question["unscored"])
    for index, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        offset = len(ids) - prefix  # packed position of a choice's token minus its own position
        for position in range(start, len(sequence)):
            if position in unscored:
                continue
            before = position - 1
            predictions.append((before if before < prefix else before + offset, sequence[position], index))
        ids += sequence[prefix:-1]
        positions += range(prefix, len(sequence) - 1)
        segments += [index + 1] * (len(sequence) - 1 - prefix)
    return ids, positions, segments, predictions, len(sequences)


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
