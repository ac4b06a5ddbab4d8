"""An unfinished phase goes on only with the settings, rows and weights that it was begun with; others are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flexora.cli import main
from tests.reliability.test_finite import Poison


@pytest.fixture
def begun(
    recipe: Callable[..., Path], tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> Callable[[str, pytest.MonkeyPatch], list[str]]:
    """Begin a phase on a model and rows of its own, and stop it behind its first checkpoint."""

    def begin(verb: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        shutil.copytree(tiny_models["llama"], tmp_path / "model")
        shutil.copytree(benchmark_folder, tmp_path / "rows")
        arguments = [verb, "--config", str(recipe()), f"--backbone.model={tmp_path / 'model'}"]
        arguments += [f"--data.init_args.source={tmp_path / 'rows'}"]
        arguments += ["--selection=1", "--finetune.checkpoint_every=1"] if verb == "finetune" else []
        with monkeypatch.context() as patch:
            assert Poison(patch).run(arguments, {20}) == 2
        assert list((tmp_path / "out" / verb / "checkpoints").glob("*.ckpt"))
        return arguments

    return begin


@pytest.mark.parametrize("verb", ["search", "finetune"])
def test_other_rows_and_other_weights_are_refused(
    verb: str,
    begun: Callable[[str, pytest.MonkeyPatch], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = begun(verb, monkeypatch)
    rows, weights = tmp_path / "rows" / "train.jsonl", tmp_path / "model" / "model.safetensors"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:-1]))
    capfd.readouterr()
    assert main(arguments) == 2
    assert "was made with other settings (rows " in capfd.readouterr().err
    rows.write_text("".join(lines))
    whole = weights.read_bytes()
    save_file({name: tensor / 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    assert main(arguments) == 2
    assert "was made with other settings (weights " in capfd.readouterr().err
    weights.write_bytes(whole)
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--finetune.trainer.overfit_batches=2", "trainer.overfit_batches"),
        ("--finetune.trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch"),
        ("--finetune.trainer.limit_val_batches=1", "trainer.limit_val_batches"),
        ("--finetune.trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val_loss}}]", "callbacks"),
        ("--finetune.trainer.gradient_clip_val=0.5", "trainer.gradient_clip_val"),
        ("--finetune.trainer.callbacks=[{class_path: Timer, init_args: {duration: '00:00:09:00'}}]", "callbacks"),
        ("--finetune.trainer.enable_autolog_hparams=false", None),
        ("--finetune.trainer.callbacks=[{class_path: LearningRateMonitor}]", None),
        ("--finetune.trainer.log_every_n_steps=1", None),
    ],
)
def test_settings_of_the_trainer_are_harmless_or_refused(
    flag: str,
    named: str | None,
    begun: Callable[[str, pytest.MonkeyPatch], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = begun("finetune", monkeypatch)
    capfd.readouterr()
    assert main([*arguments, flag]) == (2 if named else 0)
    error = capfd.readouterr().err
    assert named is None or f"was made with other settings ({named}" in error or f"(trainer.{named}" in error
