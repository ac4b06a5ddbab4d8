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

    def __init__(self, data: datasets.Dataset, pad_token: int, *, all_choices: bool) -> None:
        self.data = data
        self.pad_token = pad_token
        self.all_choices = all_choices

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, ``[rows]``."""
        return np.asarray(self.data["length"])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        return self.data[row]

    def __getitems__(self, batch: MicroBatch) -> Batch:
        """Collate the rows of one micro-batch."""
        questions = [self.data[row] for row in batch.rows]
        return collate(questions, batch.rows, self.pad_token, all_choices=self.all_choices, normalizer=batch.normalizer)
