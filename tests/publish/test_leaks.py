"""What the search for leaks finds, and what it leaves alone."""

from __future__ import annotations

import pytest

from flexora.publish.leaks import find_leak


@pytest.mark.parametrize(
    "text",
    [
        "/home/bob/rows",
        "--data=/home/bob/rows",
        "dir:/home/bob/rows",
        "~/rows",
        "~bob/rows",
        "file:///home/bob/rows",
        r"C:\\Users\\bob",
        "c:/Users/bob",
        r"\\server\share\rows",
        "bob@example.org",
        "hf_" + "a" * 34,
    ],
)
def test_found(text: str) -> None:
    assert find_leak(f"rows: {text}", {}) is not None


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/allenai/ai2_arc",
        "[arc](https://huggingface.co/datasets/allenai/ai2_arc)",
        "hub:allenai/ai2_arc/ARC-Easy",
        "hf:me/arc@v1.0",
        "zoo:llama-3-8b/hellaswag/samples-1000",
        "</td></tr>",
        "flexora.data.arc.ArcEasy",
        "500 of 2,376 rows, 3/4",
    ],
)
def test_left_alone(text: str) -> None:
    assert find_leak(f"rows: {text}", {}) is None


def test_names_are_whole_words() -> None:
    private = {"alice": "the user's name"}
    assert find_leak("by alice, 2026", private) == "the user's name"
    assert find_leak("malice", private) is None
