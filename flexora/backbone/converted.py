"""Models that ``flexora convert`` made: a place in the cache by name, so that recipes need no path."""

from __future__ import annotations

from pathlib import Path

from flexora.errors import FlexoraError
from flexora.packaged import cache_folder
from flexora.places import plain_name

CONVERTED_PREFIX = "converted:"


def converted_place(name: str) -> Path:
    """Where a converted model is, or will be.

    Args:
        name: Its name, with or without ``converted:``.

    Raises:
        FlexoraError: If it is no plain name.
    """
    plain = plain_name(name.removeprefix(CONVERTED_PREFIX), f"backbone.model: {CONVERTED_PREFIX}NAME")
    return cache_folder() / "converted" / plain


def converted_folder(name: str) -> Path:
    """The folder of a converted model.

    Raises:
        FlexoraError: If it was not converted yet, or is no plain name.
    """
    folder = converted_place(name)
    if not folder.is_dir():
        raise FlexoraError(f"backbone.model: {name} is not in {folder.parent} yet; flexora convert --help says how")
    return folder
