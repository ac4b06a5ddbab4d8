"""A checkpoint in ChatGLM3's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backbone.chatglm3_reference import TINY, random_reference, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights without a tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("chatglm3") / "source", random_reference(TINY), files=2)
