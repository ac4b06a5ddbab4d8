"""Rows as users' files hold them, and what reading them says."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.errors import FlexoraError
from tests.tiny import arc_row

ROWS = [arc_row(number, random.Random(number)) for number in range(6)]
CHOICES = ["red", "green", "A"]
COLUMNS = {"prompt": "q", "choices": "opts", "answer": "label"}


def choice_rows(count: int) -> list[dict[str, Any]]:
    """Questions in columns of other names."""
    return [{"q": f"Colour {number}?", "opts": CHOICES, "label": number % 3} for number in range(count)]


def turns(*contents: str) -> list[dict[str, str]]:
    """A chat, the user's turn first."""
    return [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]


def sharegpt(*contents: str) -> list[dict[str, str]]:
    """A chat in ShareGPT's form."""
    return [{"from": ("human", "gpt")[number % 2], "value": content} for number, content in enumerate(contents)]


def refusal(load: Callable[[], Any]) -> str:
    """The one line of a load that must fail."""
    with pytest.raises(FlexoraError) as caught:
        load()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def data_of(folder: Path, model: Path, **settings: Any) -> ArcEasy:
    """The ARC-Easy of a folder of such rows."""
    return ArcEasy(Backbone(str(model)), str(folder), max_length=128, **settings)
