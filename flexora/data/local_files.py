"""The local files that a phase's rows come from, by their hashes: cheap to compare long after the rows were encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flexora.data.own_rows import OwnRows
from flexora.data.sources import Split, is_local, split_files
from flexora.errors import FlexoraError
from flexora.files import sha256_of
from flexora.places import own_path
from flexora.trust import known_class

#: Settings with which rows of the train split are scored, or stand before those that are.
FROM_TRAIN = ("test_rows", "development_rows", "num_fewshot")


def local_files(data: Mapping[str, Any], *, trains: bool) -> dict[str, str]:
    """Hashes of the files that a phase reads, by their names in the source; none where the rows are not local.

    Training rows that are reported too are left out, so that the reported split decides them as well.

    Args:
        data: The data section of a recipe.
        trains: Whether the phase trains; an evaluation reads the reported split, and others where it must.

    Raises:
        FlexoraError: If a file cannot be read.
    """
    kind, settings = known_class(data["class_path"]), data["init_args"]
    source = settings.get("source")  # a class of the user's may have another place for it
    if not isinstance(source, str) or not is_local(source):
        return {}
    whole = trains or any(settings.get(name) for name in FROM_TRAIN)
    members = {f"{member.__name__}/": member for member in getattr(kind, "members", ())} or {"": kind}
    return {
        f"{name}{file.name}": _hash(file)
        for name, member in members.items()
        for split in dict.fromkeys(_splits(member, settings, whole=whole))
        for file in split_files(own_path(f"{source}/{name}" if name else source, "data.source"), split)
    }


def _splits(kind: Any, settings: Mapping[str, Any], *, whole: bool) -> Iterator[Split]:
    own = isinstance(kind, type) and issubclass(kind, OwnRows)
    yield settings.get("reported_split", "test") if own else getattr(kind, "reported_split", "test")
    if whole:
        yield "train"
        if own:
            yield "validation"


def _hash(file: Path) -> str:
    try:
        status = file.stat()
        return _hash_of(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise FlexoraError(f"data.source: cannot read {file}: {error.strerror}; name another file") from error


@cache
def _hash_of(file: Path, size: int, changed: int) -> str:  # flexora run asks for each of its phases
    return sha256_of(file)[:16]
