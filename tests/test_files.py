"""Folders that take the place of others: whole, or the old one stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexora.errors import FlexoraError
from flexora.files import new_folder


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real = tmp_path / "place", os.replace
    place.mkdir()
    (place / "old").write_text("old")

    def replace(source: Path, target: Path) -> None:
        if Path(target) == place and (Path(source) / "new").exists():
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr("flexora.files.os.replace", replace)
    with pytest.raises(FlexoraError, match="cannot write"), new_folder(place, replace=True) as folder:
        (folder / "new").write_text("new")
    assert [file.name for file in place.iterdir()] == ["old"]
    monkeypatch.undo()
    with new_folder(place, replace=True) as folder:
        (folder / "new").write_text("new")
    assert [file.name for file in place.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["place"]
