"""What the search for leaks finds, and what it leaves alone."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flexora.publish.leaks import find_leak, private_texts, require_no_leak
from flexora.search.selection import Selection
from tests.publish.conftest import publish, rewrite


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
        "hub:allenai/ai2_arc/ARC-Easy@v1.0",
        "hub:allenai/ai2_arc@refs/pr/1",
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


@pytest.mark.parametrize("where", ["recipe", "selection", "weights"])
def test_what_is_private_is_found_before_anything_is_written(
    where: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret-0815")
    card = run_dir / "publish" / "README.md"
    if where == "recipe":
        assert publish(run_dir) == 0
        before = card.read_bytes()
        rewrite(run_dir / "finetune" / "config.yaml", {"report.title": "key planted-secret-0815"})
        said = "config.yaml would publish the value of WANDB_API_KEY"
    elif where == "selection":
        rewrite(run_dir / "finetune" / "selection.json", {"data.name": "rows of /home/alice/rows"})
        said = "would publish the local path /home/alice/rows"
    else:
        weights = run_dir / "finetune" / "adapter" / "adapter_model.safetensors"
        save_file(load_file(weights), weights, metadata={"format": "pt", "from": "/mnt/alice/run"})
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        rewrite(run_dir / "evaluate" / "done.json", {"adapters.flexora": sha256})
        said = "adapter_model.safetensors would publish the local path /mnt/alice/run"
    capfd.readouterr()
    assert publish(run_dir) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert "planted-secret" not in line
    if where == "recipe":
        assert card.read_bytes() == before
    else:
        assert not card.parent.exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("by alice-b, on her machine", "the user's name"),
        ("on node-17.lab.org", "the host's name"),
        ("on node-17", "the host's name, short"),
        ("token: s3cret-of-hub", "the hub's token"),
        ("key hf_" + "x" * 34, "what looks like an access token"),
        ('{"path": "/scratch/data/x"}', "the local path /scratch/data/x"),
        ("see ~/notes", "the local path ~/notes"),
        (r"C:\Users\bob", r"the local path C:\Users\bob"),
        ("https://huggingface.co/a/b, [x](https://arxiv.org/abs/2408.10774) search/selection.json and/or </s>", None),
        ("malice-b, node-170, alice-b/arc on the hub", None),
    ],
)
def test_what_counts_as_private(text: str, found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "alice-b")
    monkeypatch.setenv("HF_TOKEN", "s3cret-of-hub")
    monkeypatch.setattr("socket.gethostname", lambda: "node-17.lab.org")
    (tmp_path / "README.md").write_text(text)
    private = private_texts(Path("runs/demo"))
    if found is None:
        require_no_leak(tmp_path, private, meant=("alice-b/arc",))
        return
    with pytest.raises(Exception, match=re.escape(f"README.md would publish {found};")):
        require_no_leak(tmp_path, private, meant=("alice-b/arc",))


def test_the_file_that_layers_came_from_is_not_told(run_dir: Path) -> None:
    selection = run_dir / "finetune" / "selection.json"
    for source, told in (("/home/alice/selection.json", None), ("zoo:llama-3-8b/piqa", "zoo:llama-3-8b/piqa")):
        rewrite(selection, {"source": source})
        assert publish(run_dir) == 0
        assert Selection.read(run_dir / "publish" / "selection.json").source == told
