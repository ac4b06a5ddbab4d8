"""The base of all data: splits that share no row, encoding with the ``datasets`` cache, and loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lightning as L
from datasets import Dataset
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from flexora.backbone.loading import Backbone
from flexora.data.batch import Batch, collate
from flexora.data.batching import LengthGroupedBatches, MicroBatch, permutation, sorted_batches, token_batches
from flexora.data.bilevel import BilevelDataModule
from flexora.data.chat import encode_conversation
from flexora.data.encoding import encode
from flexora.data.fingerprint import code_fingerprint, rows_fingerprint
from flexora.data.hygiene import usable_rows, without_reported
from flexora.data.prompts import completion, require_chat_template
from flexora.data.question import Pairs
from flexora.data.reading import Examples, Reader, encode_rows, example_rows, read_row
from flexora.data.rows import EncodedRows
from flexora.data.sources import HUB_PREFIX, Row, Source, Split
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flexora.scoring.results import Metric


#: What is minimised: the loss of the right answer's tokens, or the cross-entropy of the choices.
Objective = Literal["answer", "choices"]


class AnswerDataModule(L.LightningDataModule, ABC):
    """Rows with answers for the search, the fine-tune and the evaluation.

    The train split is shuffled by ``split_seed``; its first ``validation_rows`` are held out (the search's outer
    problem and the fine-tune's choice of the best epoch), the next ``train_rows`` are trained on. The reported split
    is only ever evaluated; train rows that occur in it are left out.

    Args:
        backbone: The base model, whose tokenizer is used. Recipes fill it in from their own section.
        source: ``hub``, ``packaged``, or a folder of ``train.jsonl``, ``validation.jsonl``, ``test.jsonl``.
        batch_size: Rows of one forward pass in training.
        evaluate_tokens: Tokens of one forward pass in evaluation, padding included; it decides speed and memory alone.
        validation_rows: Rows held out of the train split.
        train_rows: Rows to train on; all that remain by default.
        evaluate_rows: Rows of the reported split to evaluate, drawn by ``split_seed``; all by default.
        max_length: Longest sequence in tokens; longer prompts are cut on the left, answers never.
        chat_template: Write every prompt as the user's turn of the tokenizer's chat template.
        num_fewshot: Solved examples before each reported row, drawn from the train split by ``split_seed``; training
            has none.
        objective: Loss of the training: ``answer``, the negative log-likelihood of the right answer's tokens (the
            paper), or ``choices``, the cross-entropy of the choices under their summed log-likelihoods.
        validation_objective: Loss on the held-out rows, the outer objective of the search; like ``objective`` by
            default.
        bad_rows: What to do when rows cannot be used: ``refuse`` the split, or ``skip`` them. Both count them and show
            the first three.
        split_seed: Seed of the splits. It stays the same when ``seed`` varies, so that seeds share their rows.
        seed: Seed of the training order. Recipes fill it in from their own section.
    """

    benchmark: ClassVar[Source]
    reported_split: Split
    primary_metric: Metric
    metrics: tuple[Metric, ...]
    #: Whether there are rows to train on.
    trained: ClassVar[bool] = True
    #: Whether few-shot examples are drawn, or the first rows taken.
    drawn_examples: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone | None = None,
        source: str = "hub",
        batch_size: int = 16,
        evaluate_tokens: int = 4096,
        validation_rows: int = 200,
        train_rows: int | None = None,
        evaluate_rows: int | None = None,
        max_length: int = 1024,
        chat_template: bool = False,
        num_fewshot: int = 0,
        objective: Objective = "answer",
        validation_objective: Objective | None = None,
        bad_rows: Literal["refuse", "skip"] = "refuse",
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts: dict[str, int | None] = {"batch_size": batch_size, "evaluate_tokens": evaluate_tokens}
        counts |= {"validation_rows": validation_rows, "train_rows": train_rows, "evaluate_rows": evaluate_rows}
        counts |= {"max_length": max_length}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise FlexoraError(f"data.{name}: {value} is too small; give at least 1")
        if num_fewshot < 0:
            raise FlexoraError(f"data.num_fewshot: {num_fewshot} is too small; give 0 or more")
        self.backbone = backbone or Backbone()
        self.source = source
        self.batch_size = batch_size
        self.evaluate_tokens = evaluate_tokens
        self.validation_rows = validation_rows
        self.train_rows = train_rows
        self.evaluate_rows = evaluate_rows
        self.max_length = max_length
        self.chat_template = chat_template
        self.num_fewshot = num_fewshot
        self.objective: Objective = objective
        self.validation_objective: Objective = validation_objective or objective
        self.bad_rows = bad_rows
        self.split_seed = split_seed
        self.seed = seed

    @abstractmethod
    def reader(self) -> Reader:
        """What turns a raw row into a :class:`Reading`; it must be picklable, for the cache's key is its content."""

    def new_reader(self) -> Reader:
        """What reads a row to be answered, whose answer is not known.

        Raises:
            FlexoraError: If there is no such thing.
        """
        raise FlexoraError(f"predict: {self.benchmark_name} says not how a new row is read; take another data class")

    @property
    def benchmark_name(self) -> str:
        """Name of the benchmark."""
        return type(self).__name__

    @property
    def parts(self) -> Sequence[AnswerDataModule]:
        """The benchmarks that are reported; a mixture has several."""
        return [self]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.backbone.load_tokenizer()

    @property
    def _is_local(self) -> bool:
        return self.source not in ("hub", "packaged") and not self.source.startswith(HUB_PREFIX)

    @property
    def unit(self) -> str:
        """What messages count: lines of the user's files, or rows."""
        return "line" if self._is_local else "row"

    def check_source(self) -> None:
        """Find out without loading a row whether a local source can be read.

        Raises:
            FlexoraError: If the folder or the wheel is missing.
        """
        if self.source == "packaged":
            from flexora.packaged import ROWS_WHEEL

            ROWS_WHEEL.require()
        elif self.source == "hub" and self.benchmark.hub is None:
            raise FlexoraError("data.source: name a folder of files, or hub:OWNER/NAME")
        elif self._is_local and not Path(self.source).expanduser().is_dir():
            raise FlexoraError(f"data.source: {self.source} is not a folder; name a folder, hub, or packaged")

    def prepare_data(self) -> None:
        """Fill the caches once per machine; an evaluation needs no training rows."""
        testing = self.trainer is not None and self.trainer.state.fn == TrainerFn.TESTING
        _ = self.reported_split_rows if testing else self.train_split

    def rows(self, split: Split, *, reported: bool = False) -> Dataset:
        """The encoded rows of a split that can be used, in the source's order, from the cache where possible.

        Args:
            split: The split.
            reported: Encode the rows to be reported: solved examples stand before each of them, and of a chat the last
                turn alone is scored.

        Raises:
            FlexoraError: If the source cannot be read, or rows cannot be used and ``bad_rows`` is ``refuse``.
        """
        raw = self.benchmark.load(self.source, split)
        place = f"{self.benchmark_name} {self.source} [{split}]"
        return self.encode(raw, place, self.benchmark.fields, self.reader(), reported=reported)

    def encode(self, raw: Dataset, place: str, fields: Sequence[str], reader: Reader, *, reported: bool) -> Dataset:
        """Encode raw rows, from the cache where possible, and leave out those that cannot be used.

        Args:
            raw: The rows.
            place: What messages call them.
            fields: Fields that every row must have.
            reader: What reads a row.
            reported: As in :meth:`rows`.

        Raises:
            FlexoraError: If rows cannot be used and ``bad_rows`` is ``refuse``, or there is no chat template.
        """
        if self.chat_template:
            require_chat_template(self.tokenizer)
        own = [part for part in type(self).__mro__ if issubclass(part, AnswerDataModule)]
        arguments = {
            "fields": fields,
            "reader": reader,
            "tokenizer": self.tokenizer,
            "max_length": self.max_length,
            "chat": self.chat_template,
            "examples": self.examples if reported else {},
            "every_turn": not reported,
            "code": code_fingerprint(*own, Pairs, completion, encode, collate, encode_rows, encode_conversation),
        }
        encoded = raw.map(
            encode_rows,
            batched=True,
            batch_size=256,
            with_indices=True,
            fn_kwargs=arguments,
            remove_columns=raw.column_names,
            desc=f"Encoding {place}",
        )
        return usable_rows(encoded, place, self.unit, skip=self.bad_rows == "skip")

    @cached_property
    def example_rows(self) -> list[Row]:
        """Raw rows of the solved examples, drawn from the train split by ``split_seed``."""
        if not self.num_fewshot:
            return []
        raw = self.benchmark.load(self.source, "train")
        order = permutation(len(raw), self.split_seed, 2).tolist() if self.drawn_examples else range(len(raw))
        return example_rows(raw, order, self.benchmark.fields, self.reader(), self.num_fewshot)

    @cached_property
    def examples(self) -> Examples:
        """The solved examples of each group of rows, as text."""
        examples: dict[str, list[str]] = {}
        for row in self.example_rows:
            reading = read_row(row, self.benchmark.fields, self.reader())
            assert reading.pairs is not None
            examples.setdefault(reading.group, []).append(reading.pairs.right)
        return examples

    @cached_property
    def _train_order(self) -> list[int]:
        total = len(self.train_split)
        wanted = self.validation_rows + (self.train_rows or 1)
        if wanted > total:
            raise FlexoraError(
                f"data: {self.benchmark_name} has {total} train rows, but validation_rows {self.validation_rows} and "
                f"train_rows {self.train_rows or 'all'} need {wanted}; lower one of them"
            )
        return [int(row) for row in permutation(total, self.split_seed, 0)]

    @cached_property
    def train_split(self) -> Dataset:
        """The train rows that do not occur in the reported split."""
        if not self.trained:
            raise FlexoraError(f"data: {self.benchmark_name} is for evaluation only; search and train on another one")
        rows = self.rows("train")
        if not self.has_reported_rows():
            return rows
        return without_reported(rows, self.reported_split_rows, self.benchmark_name, self.reported_split, self.unit)

    def has_reported_rows(self) -> bool:
        """Whether there is a reported split, as far as that can be told without asking the hub."""
        return self.benchmark.has(self.source, self.reported_split)

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
        return self.train_split.select(trained), self.train_split.select(held_out)

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
        return len(self.reported_split_rows)

    @cached_property
    def reported_split_rows(self) -> Dataset:
        """All rows of the reported split."""
        return self.rows(self.reported_split, reported=True)

    @cached_property
    def reported_set(self) -> Dataset:
        """The rows of the reported split that are evaluated: a fixed cut drawn by ``split_seed``, or all."""
        if self.evaluate_rows is None or self.evaluate_rows >= self.reported_rows:
            return self.reported_split_rows
        chosen = sorted(permutation(self.reported_rows, self.split_seed, 1)[: self.evaluate_rows].tolist())
        return self.reported_split_rows.select(chosen)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens of the training and the validation rows, in their order."""
        return rows_fingerprint(self.train_set, self.validation_set)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, length-grouped batches."""
        rows = self.training_rows(self.train_set, self.objective)
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        return loader(
            rows, LengthGroupedBatches(rows.lengths, rows.terms, self.batch_size, accumulate=accumulate, seed=self.seed)
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out rows."""
        rows = self.training_rows(self.validation_set, self.validation_objective)
        return loader(rows, [MicroBatch(batch, 0) for batch in sorted_batches(rows.lengths, self.batch_size)])

    def test_dataloader(self) -> DataLoader[Batch]:
        """The reported rows, every choice of a question packed behind its prompt."""
        rows = EncodedRows(self.reported_set, self.pad_token, all_choices=True)
        return loader(rows, [MicroBatch(batch, 0) for batch in token_batches(rows.lengths, self.evaluate_tokens)])

    def training_rows(self, data: Dataset, objective: Objective) -> EncodedRows:
        """Encoded rows as an objective needs them."""
        contrast = objective == "choices"
        return EncodedRows(data, self.pad_token, all_choices=contrast, contrast=contrast)

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


def loader(rows: TorchDataset[Any], batches: Any) -> DataLoader[Any]:
    """A loader over rows that hand over ready batches."""
    return DataLoader(rows, batch_sampler=batches, collate_fn=_identity)


def _identity(batch: Any) -> Any:
    """The rows are a batch already."""
    return batch
