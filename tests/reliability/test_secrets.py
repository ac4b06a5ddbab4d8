"""No token in any file or message; remote code stays off; what a card shows is text."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flexora.cli import main
from flexora.report.terminal import escaped_markdown, markdown_table
from flexora.secrets import without_secrets

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "a1B2" * 9
HOSTILE = "<script>x</script> [a](javascript:b) `c` ![d](e)\n# f | g \\"


def test_no_token_in_any_file_of_a_run(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MY_PASSWORD", "correct horse battery")
    logger = "{class_path: CSVLogger, init_args: {save_dir: %s, prefix: '%s correct horse battery'}}"
    trainer = f"{{max_epochs: 1, logger: {logger % (tmp_path / 'logs', TOKEN)}}}"
    flags = ["--config", str(recipe()), "--finetune.selection=0", f"--finetune.trainer={trainer}"]
    assert main(["finetune", *flags]) == 0
    assert main(["evaluate", *flags, "--evaluate.arms=[base]"]) == 0
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {"config.yaml", "usage.json", "done.json"} <= {file.name for file in files}
    for file in files:
        assert TOKEN.encode() not in file.read_bytes(), file
        assert b"correct horse battery" not in file.read_bytes(), file
    kept = yaml.safe_load((tmp_path / "out" / "finetune" / "config.yaml").read_text())
    assert kept["finetune"]["trainer"]["logger"]["init_args"]["prefix"] == "<hidden> <hidden>"
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err


def test_no_token_in_a_message(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    for secret in (TOKEN, "0123456789abcdef"):
        assert main(["search", "--config", str(recipe()), f"--search.outer_steps={secret}"]) == 2
        error = capfd.readouterr().err
        assert secret not in error
        assert "<hidden>" in error
    assert without_secrets("an ordinary text of 0123456789") == "an ordinary text of 0123456789"


def test_remote_code_is_for_the_tokenizer_of_a_pinned_revision_alone() -> None:
    trusting = []
    for file in (ROOT / "flexora").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                off = [word for word in node.keywords if word.arg == "trust_remote_code"]
                trusting += [file.name for word in off if getattr(word.value, "value", None) is not False]
    assert trusting == ["loading.py"]
    for file in (ROOT / "recipes").rglob("*.yaml"):
        assert "trust_remote_code" not in file.read_text(), file


def test_markdown_shows_what_it_is_given() -> None:
    from markdown_it import MarkdownIt

    shown = MarkdownIt().enable("table").render(f"{escaped_markdown(HOSTILE)}\n\n{markdown_table(['a'], [[HOSTILE]])}")
    for made in ("<script", "<a ", "<img", "<code", "<h1"):
        assert made not in shown
    assert shown.count("<td") == 1
    assert "&lt;script&gt;x&lt;/script&gt; [a](javascript:b) `c` ![d](e) # f | g \\" in shown


def test_no_token_in_a_traceback(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error of flexora's own keeps its traceback, and its status is neither the user's nor a success."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"GET https://user:{TOKEN}@host failed")

    monkeypatch.setattr("flexora.verbs.search.lightning_cli", fail)
    assert main(["search", "--config", str(recipe())]) == 1
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert "RuntimeError: GET https://" in error
    assert TOKEN not in error


def test_a_recipe_cannot_allow_a_repository_to_run_code(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever wrote the recipe may have written the code, and chosen the commit."""
    flags = ["--config", str(recipe()), "--backbone.trust_remote_code=true", "--finetune.selection=0"]
    for verb in ("search", "finetune", "evaluate", "run", "merge", "estimate"):
        assert main([verb, *flags]) == 2
        assert "backbone.trust_remote_code: a recipe cannot allow itself" in capfd.readouterr().err
    assert main(["estimate", *flags, "--allow-remote-code"]) == 0
    assert main(["estimate", *flags]) == 2  # it held for that command alone
    assert not (tmp_path / "out").exists()


def test_no_token_in_the_settings_of_a_phase(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """They are compared when the phase is gone on with, or is done."""
    logger = f"{{class_path: CSVLogger, init_args: {{save_dir: {tmp_path / 'logs'}, name: {TOKEN}}}}}"
    settings = [f"--search.trainer={{logger: {logger}}}", f"--finetune.selection={tmp_path / TOKEN}.json"]
    arguments = ["search", "--config", str(recipe()), *settings]
    assert main(arguments) == 0
    for name in ("settings.json", "done.json", "config.yaml"):
        assert TOKEN not in (tmp_path / "out" / "search" / name).read_text()
