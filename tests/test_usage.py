"""What a phase took is added up over its processes, however each of them ends."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flexora.usage import Usage, measured


def interrupted(folder: Path) -> None:
    with measured(folder):
        time.sleep(0.02)
        raise KeyboardInterrupt


def test_times_are_added_and_memory_is_the_largest(tmp_path: Path) -> None:
    assert Usage.read(tmp_path) == Usage()
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path)
    first = Usage.read(tmp_path)
    assert first.seconds >= 0.02
    assert first.peak_memory_bytes > 10 * 2**20
    (tmp_path / "usage.json").write_text(first.model_copy(update={"peak_memory_bytes": 10**15}).model_dump_json())
    with measured(tmp_path):
        time.sleep(0.02)
    second = Usage.read(tmp_path)
    assert second.seconds >= first.seconds + 0.02
    assert second.peak_memory_bytes == 10**15
