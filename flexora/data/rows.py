"""Encoded rows as batches: the loader hands over which rows go together, and gets them packed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from flexora.data.batch import Batch, collate
from flexora.data.batching import MicroBatch


class EncodedRows(Dataset[Any]):
    """Encoded rows that are fetched as ready batches: the loader hands a whole :class:`MicroBatch` over."""

    def __init__(self, data: datasets.Dataset, pad_token: int, *, all_choices: bool, contrast: bool = False) -> None:
        self.data = data
        self.pad_token = pad_token
        self.all_choices = all_choices
        self.contrast = contrast

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row as it is packed, ``[rows]``."""
        return np.asarray(self.data["packed_length" if self.all_choices else "length"])

    @cached_property
    def terms(self) -> np.ndarray:
        """Terms of the loss of each row, ``[rows]``: its answer tokens, or itself where choices are contrasted."""
        return np.ones(len(self.data), dtype=int) if self.contrast else np.asarray(self.data["answer_tokens"])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        return self.data[row]

    def __getitems__(self, batch: MicroBatch) -> Batch:
        """Collate the rows of one micro-batch."""
        questions = [self.data[row] for row in batch.rows]
        return collate(
            questions,
            batch.rows,
            self.pad_token,
            all_choices=self.all_choices,
            contrast=self.contrast,
            normalizer=batch.normalizer,
        )
