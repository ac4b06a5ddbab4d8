"""A cache of rows for each test, and a model that chats."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from flexora.backbone.loading import Backbone
from tests.tiny import CHAT_TEMPLATE, save_model


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep encoded rows apart from those of other tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A tiny model whose tokenizer has a chat template."""
    return Backbone(str(save_model(tmp_path_factory.mktemp("models") / "chatty", "llama", chat_template=CHAT_TEMPLATE)))
