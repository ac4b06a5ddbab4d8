"""Rows with answers as a LightningDataModule: its settings, and how raw rows become encoded ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import lightning as L
from datasets import Dataset

from flexora.backbone.loading import Backbone
from flexora.data.batching import permutation
from flexora.data.fingerprint import code_fingerprint
from flexora.data.hygiene import tell_cut, usable_rows
from flexora.data.json_rows import LINE, is_array
from flexora.data.prompts import require_chat_template
from flexora.data.question import Pairs, PromptForm
from flexora.data.reading import FEATURES, Examples, Reader, encode_rows, example_rows, read_row, said_keys
from flexora.data.sources import Row, Source, Split, hub_names, is_local, require_place, split_files
from flexora.data.tables import TABLES
from flexora.errors import FlexoraError, require_at_least
from flexora.places import own_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flexora.scoring.results import Metric

#: What is minimised: the loss of the right answer's tokens, or the cross-entropy of the choices.
Objective = Literal["answer", "choices"]


class EncodedDataModule(L.LightningDataModule, ABC):
    """Settings of all data, and the encoding of rows, with the cache of ``datasets``.

    Args:
        backbone: The base model, whose tokenizer is used. Recipes fill it in from their own section.
        source: ``hub``, ``hub:OWNER/NAME`` or ``hub:OWNER/NAME/CONFIGURATION``, either with ``@REVISION`` behind it (a
            commit, tag or branch), ``packaged``, a folder of ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` (or
            ``.json``, ``.parquet``, ``.csv``; or shards, ``train-00000-of-00003.parquet``), or one such file: the train
            split.
        batch_size: Rows of one forward pass in training, on each device; at most so many where
            ``max_tokens_per_batch`` is given.
        max_tokens_per_batch: Most tokens of one forward pass of the fine-tune, padding included, so that long rows go
            together in fewer; any number by default. The search draws ``search.batch_size`` rows whatever their length.
        evaluate_tokens: Tokens of one forward pass in evaluation, padding included; it decides speed and memory alone.
            Eight times as many where answers are generated.
        validation_rows: Rows held out of the train split; at most so many of a held-out split of the user's own.
        train_rows: Rows to train on; all that remain by default.
        evaluate_rows: Rows of the reported split to evaluate, drawn by ``split_seed``; all by default.
        development_rows: Score so many rows of the train split, drawn by ``split_seed``, in place of the reported
            split: neither searched nor trained on, they judge settings while the reported split stays untouched.
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
        train_seed: Seed of which rows are held out and which are trained on; ``split_seed`` by default. With another
            one they are others, and the rows that are scored the same.
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
    #: Whether all turns of the assistant are trained on, or the last alone.
    every_turn: bool = True

    def __init__(
        self,
        backbone: Backbone | None = None,
        source: str = "hub",
        batch_size: int = 16,
        max_tokens_per_batch: int | None = None,
        evaluate_tokens: int = 2048,
        validation_rows: int = 200,
        train_rows: int | None = None,
        evaluate_rows: int | None = None,
        development_rows: int | None = None,
        max_length: int = 1024,
        chat_template: bool = False,
        num_fewshot: int = 0,
        objective: Objective = "answer",
        validation_objective: Objective | None = None,
        bad_rows: Literal["refuse", "skip"] = "refuse",
        split_seed: int = 0,
        train_seed: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts: dict[str, int | None] = {"batch_size": batch_size, "evaluate_tokens": evaluate_tokens}
        counts |= {"validation_rows": validation_rows, "train_rows": train_rows, "evaluate_rows": evaluate_rows}
        counts |= {"max_length": max_length, "max_tokens_per_batch": max_tokens_per_batch}
        counts |= {"development_rows": development_rows}
        require_at_least(1, "data", counts)
        require_at_least(0, "data", {"num_fewshot": num_fewshot})
        if num_fewshot and development_rows:
            raise FlexoraError("data.development_rows: solved examples might be among them; set data.num_fewshot to 0")
        self.backbone = backbone or Backbone()
        self.source = source
        self.batch_size = batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.evaluate_tokens = evaluate_tokens
        self.validation_rows = validation_rows
        self.train_rows = train_rows
        self.evaluate_rows = evaluate_rows
        self.development_rows = development_rows
        self.max_length = max_length
        self.chat_template = chat_template
        self.num_fewshot = num_fewshot
        self.objective: Objective = objective
        self.validation_objective: Objective = validation_objective or objective
        self.bad_rows = bad_rows
        self.split_seed = split_seed
        self.train_seed = split_seed if train_seed is None else train_seed
        self.seed = seed

    @abstractmethod
    def reader(self) -> Reader:
        """What turns a raw row into a :class:`Reading`; it must be picklable, for the cache's key is its content."""

    def prompt_form(self) -> PromptForm | None:
        """How a row is written, for those who have no flexora; none where nothing says it."""
        return None

    def new_reader(self) -> Reader:
        """What reads a row to be answered, whose answer is not known.

        Raises:
            FlexoraError: If there is no such thing.
        """
        raise FlexoraError(f"predict: {self.benchmark_name} says not how a new row is read; take another data class")

    def new_row(self, row: Row) -> Row:
        """A row to be answered, by the names that :meth:`new_reader` knows."""
        return row

    @property
    def benchmark_name(self) -> str:
        """Name of the benchmark."""
        return type(self).__name__

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer."""
        return self.backbone.load_tokenizer()

    @property
    def _is_local(self) -> bool:
        return is_local(self.source)

    @property
    def unit(self) -> str:
        """What messages count: lines of the user's JSON-lines file, or rows."""
        files = split_files(own_path(self.source, "data.source"), "train") if self._is_local else []
        return "line" if [file.suffix not in TABLES and not is_array(file) for file in files] == [True] else "row"

    def check_source(self) -> None:
        """Find out without loading a row whether a local source can be read.

        Raises:
            FlexoraError: If the folder, the file or the wheel is missing, or the wheel has no rows of the benchmark.
        """
        if self.source == "packaged":
            self.benchmark.require_packaged()
        elif self.source == "hub":
            self.benchmark.require_hub()
        elif not self._is_local:
            hub_names(self.source)
        else:
            require_place(own_path(self.source, "data.source"))

    def raw(self, split: Split) -> Dataset:
        """The rows of a split as their source has them."""
        return self.benchmark.load(self.source, split)

    def rows(self, split: Split, *, reported: bool = False) -> Dataset:
        """The encoded rows of a split that can be used, in the source's order, from the cache where possible.

        Args:
            split: The split.
            reported: Encode the rows to be reported: solved examples stand before each of them, and of a chat the last
                turn alone is scored.

        Raises:
            FlexoraError: If the source cannot be read, or rows cannot be used and ``bad_rows`` is ``refuse``.
        """
        raw = self.raw(split)
        place = f"{self.benchmark_name} {self.source} [{split}]"
        room = self.room if reported else 0
        return self.encode(raw, place, self.benchmark.fields, self.reader(), reported=reported, room=room)

    def encode(
        self, raw: Dataset, place: str, fields: Sequence[str], reader: Reader, *, reported: bool, room: int = 0
    ) -> Dataset:
        """Encode raw rows, from the cache where possible, and leave out those that cannot be used.

        Args:
            raw: The rows.
            place: What messages call them.
            fields: Fields that every row must have.
            reader: What reads a row.
            reported: As in :meth:`rows`.
            room: Tokens that prompts leave to an answer that the model writes.

        Raises:
            FlexoraError: If rows cannot be used and ``bad_rows`` is ``refuse``, or there is no chat template.
        """
        if self.chat_template:
            require_chat_template(self.tokenizer)
        own = [part for part in type(self).__mro__ if issubclass(part, EncodedDataModule)]
        here = Path(__file__).parent.rglob("*.py")
        arguments = {
            "fields": fields,
            "reader": reader,
            "tokenizer": self.tokenizer,
            "max_length": self.max_length,
            "room": room,
            "chat": self.chat_template,
            "examples": self.examples if reported else {},
            "every_turn": self.every_turn and not reported,
            "code": code_fingerprint(*here, *own, reader),
        }
        encoded = raw.map(
            encode_rows,
            batched=True,
            batch_size=256,
            with_indices=True,
            fn_kwargs=arguments,
            remove_columns=raw.column_names,
            features=FEATURES,
            desc=f"Encoding {place}",
        )
        unit = "line" if LINE in raw.column_names else "row"
        usable = usable_rows(encoded, place, unit, skip=self.bad_rows == "skip")
        tell_cut(usable, place, self.max_length, room)
        return usable

    @property
    def room(self) -> int:
        """Tokens that a reported prompt leaves to an answer that the model writes; 0 where it writes none."""
        return 0

    @cached_property
    def example_rows(self) -> list[Row]:
        """Raw rows of the solved examples, drawn from the train split by ``split_seed``."""
        if not self.num_fewshot:
            return []
        raw, reported = self.raw("train"), self.raw(self.reported_split)
        order = permutation(len(raw), self.split_seed, 2).tolist() if self.drawn_examples else range(len(raw))
        fields, reader = self.benchmark.fields, self.reader()
        return example_rows(raw, order, fields, reader, self.num_fewshot, said_keys(reported, fields, reader))

    @cached_property
    def examples(self) -> Examples:
        """The solved examples of each group of rows."""
        examples: dict[str, list[Pairs]] = {}
        for row in self.example_rows:
            reading = read_row(row, self.benchmark.fields, self.reader())
            assert reading.pairs is not None
            examples.setdefault(reading.group, []).append(reading.pairs)
        return examples
