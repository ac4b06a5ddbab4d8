"""Where the user's own rows come from: files or any dataset on the hub, with a mapping of columns in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from flexora.data.batching import permutation
from flexora.data.columns import Columns, renamed
from flexora.data.datamodule import AnswerDataModule
from flexora.data.reading import Reader, Reading
from flexora.data.sources import Row, Source, Split, split_files
from flexora.errors import FlexoraError, require_at_least
from flexora.places import own_path

Reported = Literal["test", "validation"]

#: What is scored where the rows have no such split: it must not read as one that others could find there.
SET_ASIDE = "set-aside train"


class OwnRows(AnswerDataModule):
    """Where the user's own rows come from.

    A folder's ``validation.jsonl`` (or ``.json``, ``.parquet``, ``.csv``) is what is held out, unless it is reported:
    at most ``validation_rows`` of its rows, drawn by ``train_seed``. Train rows that occur in it are left out.

    Args:
        columns: For each field its column, where they have other names, such as ``{prompt: question}``; or several,
            whose texts are joined by empty lines, such as ``{prompt: [instruction, input]}``; of ``choices`` one for
            each choice. Only the first must be in every row.
        reported_split: The split that is reported.
        test_rows: Where there is no such split: rows of the train split that are reported instead. A cut of one that is
            there takes ``evaluate_rows``.
        options: Settings of the other bases.
    """

    benchmark = Source(hub=None, fields=())
    #: The fields that a recipe may map.
    own_fields: tuple[str, ...]
    #: What every new row says, whatever its columns are.
    fixed: Mapping[str, Any] = {}

    def __init__(
        self,
        *args: Any,
        columns: dict[str, str | list[str]] | None = None,
        reported_split: Reported = "test",
        test_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        require_at_least(1, "data", {"test_rows": test_rows})
        self.columns: Columns = columns or {}
        for field, names in self.columns.items():
            if field not in self.own_fields or not names:
                known = ", ".join(self.own_fields)
                raise FlexoraError(f"data.columns: {field}: {names} names no column of one of {known}; mend it")
            if field in ("answer", "messages") and not isinstance(names, str):
                raise FlexoraError(f"data.columns: {field}: {names} are several; name one column")
        self.reported_split = reported_split
        self.test_rows = test_rows

    def raw(self, split: Split) -> Dataset:
        """The rows of a split; of the train split, where the reported rows are cut from it."""
        if self.test_rows is None or split not in ("train", self.reported_split):
            return super().raw(split)
        self._require_no_reported_file()
        everything = super().raw("train")
        if self.test_rows >= len(everything):
            raise FlexoraError(f"data.test_rows: {self.test_rows} leaves none of {len(everything)} rows; lower it")
        order = permutation(len(everything), self.split_seed, 3)
        cut, rest = order[: self.test_rows], order[self.test_rows :]
        return everything.select(sorted(cut if split == self.reported_split else rest))

    def check_source(self) -> None:
        """Find out without loading a row whether a local source can be read, and what is reported of it.

        Raises:
            FlexoraError: If it cannot, or rows are to be set aside beside a reported split.
        """
        super().check_source()
        if self.test_rows is not None:
            self._require_no_reported_file()

    def _require_no_reported_file(self) -> None:
        for file in self._files(self.reported_split):
            raise FlexoraError(
                f"data.test_rows: {file} is what is reported; leave test_rows out, and set data.evaluate_rows to "
                f"report {self.test_rows} of its rows"
            )

    def _files(self, split: Split) -> list[Path]:
        """The file of a split of a local source, if there is one."""
        return split_files(own_path(self.source, "data.source"), split) if self._is_local else []

    def has_held_out_split(self) -> bool:
        """Whether there is a file of rows to hold out."""
        return self.reported_split != "validation" and bool(self._files("validation"))

    def has_reported_rows(self) -> bool:
        """Whether there is a reported split."""
        return self.test_rows is not None or super().has_reported_rows()

    @property
    def reported_name(self) -> str:
        """The reported split, or that its rows are set aside from the train split."""
        return super().reported_name if self.test_rows is None else SET_ASIDE

    def new_reader(self) -> Reader:
        """Reads a new row, whose columns may have the names of the own rows too."""
        return partial(read_new, columns=self.columns, fixed=self.fixed, read=super().new_reader())

    def new_row(self, row: Row) -> Row:
        """The row with the fields' names, and what all rows say."""
        return _new_row(row, self.columns, self.fixed)


def _new_row(row: Row, columns: Columns, fixed: Mapping[str, Any]) -> Row:
    return {**renamed(row, columns), **fixed}


def read_new(row: Row, columns: Columns, fixed: Mapping[str, Any], read: Reader) -> Reading:
    """What a row to be answered says, whose columns may have the names of the own rows.

    Args:
        row: The row.
        columns: The column of each field.
        fixed: What every row says.
        read: What reads it.
    """
    return read(_new_row(row, columns, fixed))


def require_text(name: str, text: object) -> None:
    """Refuse what a command line makes of a text that begins with #: a YAML comment, and so nothing."""
    if not isinstance(text, str):
        raise FlexoraError(f"data.{name}: {text} is no text; where it begins with #, write it in the recipe, in quotes")
