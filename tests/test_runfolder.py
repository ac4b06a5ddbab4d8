"""What a run's folder remembers of its phases."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexora.errors import FlexoraError
from flexora.runfolder import RunFolder


def test_folders_that_are_older_than_a_setting_go_by_what_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish("search", {"data": {"source": "rows"}})
    now = {"source": "rows", "every_turn": True}
    folder.require_same("search", {"data": now})
    with pytest.raises(FlexoraError, match=r"other settings \(data\.every_turn True -> False\)"):
        folder.require_same("search", {"data": now | {"every_turn": False}})


def test_a_class_by_another_of_its_names_is_the_same(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.finish("search", {"search": {"rule": {"class_path": "flexora.search.rules.TopK", "init_args": {"k": 2}}}})
    for name in ("flexora.TopK", "TopK"):
        folder.require_same("search", {"search": {"rule": {"class_path": name, "init_args": {"k": 2}}}})
    with pytest.raises(FlexoraError, match=r"\(search\.rule\.class_path flexora\.search\.rules\.TopK -> flexora\.B"):
        folder.require_same("search", {"search": {"rule": {"class_path": "flexora.Budget", "init_args": {"k": 2}}}})
    folder.finish("finetune", {"callbacks": [{"class_path": "Timer"}]})
    folder.require_same("finetune", {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]})
    with pytest.raises(FlexoraError, match=r"callbacks .*Timer.* -> .*EarlyStopping"):
        folder.require_same("finetune", {"callbacks": [{"class_path": "EarlyStopping"}]})
