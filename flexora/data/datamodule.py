"""The base of all data: splits that share no row, and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from flexora.data.batch import Batch
from flexora.data.batching import LengthGroupedBatches, Share, length_batches, permutation
from flexora.data.bilevel import BilevelDataModule
from flexora.data.encoded import EncodedDataModule, Objective
from flexora.data.fingerprint import rows_fingerprint
from flexora.data.hygiene import without_reported, without_trained
from flexora.data.rows import EncodedRows
from flexora.errors import FlexoraError


class AnswerDataModule(EncodedDataModule):
    """Rows with answers for the search, the fine-tune and the evaluation.

    The train split is shuffled by ``train_seed``; its first ``validation_rows`` are held out (the search's outer
    problem and the fine-tune's choice of the best epoch), the next ``train_rows`` are trained on; held-out rows that
    are trained on too are left out. Own rows may have a split that is held out instead. The reported split is only ever
    evaluated; train rows that occur in it are left out. ``development_rows`` stand in its place.

    The settings are those of :class:`EncodedDataModule`.
    """

    @property
    def parts(self) -> Sequence[AnswerDataModule]:
        """The benchmarks that are reported; a mixture has several."""
        return [self]

    def prepare_data(self) -> None:
        """Fill the caches once per machine; an evaluation needs no training rows."""
        testing = self.trainer is not None and self.trainer.state.fn == TrainerFn.TESTING
        _ = self.reported_set if testing else self.train_split

    @cached_property
    def _train_order(self) -> list[int]:
        total = len(self.train_split)
        wanted = self._cut_rows + (self.train_rows or 1)
        if wanted > total:
            cut = f"validation_rows {self._cut_rows} and " if self._cut_rows else ""
            raise FlexoraError(
                f"data: {self.benchmark_name} has {total} train rows, but {cut}"
                f"train_rows {self.train_rows or 'all'} need {wanted}; lower {'one of them' if cut else 'train_rows'}"
            )
        return [int(row) for row in permutation(total, self.train_seed, 0)]

    @property
    def _cut_rows(self) -> int:
        """Rows that are held out of the train split."""
        return 0 if self.has_held_out_split() else self.validation_rows

    @cached_property
    def train_split(self) -> Dataset:
        """The train rows that do not occur in the reported split, among the development rows or in a held-out split."""
        rows, others = self._train_rows, {}
        if self.development_rows is not None:
            scored = set(self.development_set["line"])
            rows = rows.select([place for place, line in enumerate(rows["line"]) if line not in scored])
            others["the development rows"] = self.development_set
        if self.has_held_out_split():
            others["the validation split"] = self._held_out_split
        return without_reported(rows, others, self.benchmark_name, self.unit) if others else rows

    def has_held_out_split(self) -> bool:
        """Whether a split of its own is held out, in place of a cut of the train split."""
        return False

    @cached_property
    def _held_out_split(self) -> Dataset:
        """The rows of the validation split that are scored nowhere."""
        scored = {f"the {self.reported_name} split": self.reported_split_rows} if self.has_reported_rows() else {}
        if self.development_rows is not None:
            scored["the development rows"] = self.development_set
        rows = without_reported(self.rows("validation"), scored, self.benchmark_name, self.unit, "validation")
        if not len(rows):
            raise FlexoraError(
                f"data: {self.benchmark_name}: all validation rows are reported too; remove the file, or mend it"
            )
        return rows

    @cached_property
    def _held_out_rows(self) -> Dataset:
        """Those that are held out: all, or as many as are asked for."""
        rows = self._held_out_split
        if self.validation_rows >= len(rows):
            return rows
        return rows.select(sorted(permutation(len(rows), self.train_seed, 5)[: self.validation_rows].tolist()))

    @cached_property
    def _train_rows(self) -> Dataset:
        if not self.trained:
            raise FlexoraError(f"data: {self.benchmark_name} is for evaluation only; search and train on another one")
        rows = self.rows("train")
        if not self.has_reported_rows():
            return rows
        reported = {f"the {self.reported_name} split": self.reported_split_rows}
        return without_reported(rows, reported, self.benchmark_name, self.unit)

    @cached_property
    def development_set(self) -> Dataset:
        """The development rows, encoded as reported rows are."""
        lines = self._train_rows["line"]
        if self.development_rows is None or self.development_rows >= len(lines):
            raise FlexoraError(
                f"data.development_rows: {self.development_rows} of {len(lines)} train rows of {self.benchmark_name}; "
                "give a number that leaves some to train on"
            )
        scored = {lines[row] for row in permutation(len(lines), self.split_seed, 4)[: self.development_rows]}
        rows = self.rows("train", reported=True)
        return rows.select([place for place, line in enumerate(rows["line"]) if line in scored])

    def has_reported_rows(self) -> bool:
        """Whether there is a reported split, as far as that can be told without asking the hub."""
        return self.benchmark.has(self.source, self.reported_split)

    def split(self, draw: int = 0) -> tuple[Dataset, Dataset]:
        """The rows to train on, and those that are held out.

        Args:
            draw: 0 for the split itself; other numbers deal the same rows anew, for the repeats of a search.

        Raises:
            FlexoraError: If there are fewer rows than are asked for, or every held-out row is trained on too.
        """
        if draw not in self._splits:
            self._splits[draw] = self._draw(draw)
        return self._splits[draw]

    @cached_property
    def _splits(self) -> dict[int, tuple[Dataset, Dataset]]:
        """Those that were drawn: what is left out of one is told once."""
        return {}

    def _draw(self, draw: int) -> tuple[Dataset, Dataset]:
        end = None if self.train_rows is None else self._cut_rows + self.train_rows
        order = self._train_order[:end]
        if draw:
            order = [order[place] for place in permutation(len(order), self.train_seed, draw)]
        held_out, trained = order[: self._cut_rows], order[self._cut_rows :]
        train = self.train_split.select(trained)
        if self.has_held_out_split():  # the repeats of a search keep them: there are no others
            return train, self._held_out_rows
        return train, without_trained(self.train_split.select(held_out), train, self.benchmark_name, draw)

    @cached_property
    def train_set(self) -> Dataset:
        """The rows to train on."""
        return self.split()[0]

    @cached_property
    def validation_set(self) -> Dataset:
        """The rows that are held out."""
        return self.split()[1]

    @property
    def reported_name(self) -> str:
        """What people read as the name of the reported split."""
        return self.reported_split

    @property
    def scored_split(self) -> str:
        """Name of what is scored: the reported split, or the development rows."""
        return self.reported_name if self.development_rows is None else "development"

    @cached_property
    def reported_rows(self) -> int:
        """Number of rows of the whole of it."""
        return len(self._scored_rows)

    @property
    def _scored_rows(self) -> Dataset:
        return self.reported_split_rows if self.development_rows is None else self.development_set

    @cached_property
    def reported_split_rows(self) -> Dataset:
        """All rows of the reported split."""
        return self.rows(self.reported_split, reported=True)

    @cached_property
    def reported_set(self) -> Dataset:
        """The rows that are evaluated, of the reported split: a fixed cut drawn by ``split_seed``, or all."""
        if self.evaluate_rows is None or self.evaluate_rows >= self.reported_rows:
            return self._scored_rows
        chosen = sorted(permutation(self.reported_rows, self.split_seed, 1)[: self.evaluate_rows].tolist())
        return self._scored_rows.select(chosen)

    @property
    def fingerprint(self) -> str:
        """Hash of the tokens of the training and the validation rows, in their order."""
        return rows_fingerprint(self.train_set, self.validation_set)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled, length-grouped batches."""
        rows = self.training_rows(self.train_set, self.objective)
        accumulate = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        batches = LengthGroupedBatches(
            rows.lengths,
            rows.terms,
            self.batch_size,
            accumulate=accumulate,
            seed=self.seed,
            max_tokens=self.max_tokens_per_batch,
            share=self.share,
        )
        return loader(rows, batches)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out rows."""
        rows = self.training_rows(self.validation_set, self.validation_objective)
        batches = length_batches(rows.lengths, self.batch_size, self.max_tokens_per_batch)
        return loader(rows, self.share.of(batches))

    def test_dataloader(self) -> DataLoader[Batch]:
        """The reported rows, every choice of a question packed behind its prompt."""
        rows = EncodedRows(self.reported_set, self.pad_token, all_choices=True)
        batches = length_batches(rows.lengths, max_tokens=self.evaluate_tokens)
        return loader(rows, self.share.of(batches))

    @property
    def share(self) -> Share:
        """This process's share of the batches."""
        return Share() if self.trainer is None else Share(self.trainer.global_rank, self.trainer.world_size)

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
