"""What a phase makes of the trainer section: flags that would be void, devices, callbacks, loggers, launchers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from lightning_utilities.core.imports import RequirementCache

from flexora.backbone.limits import REFUSED_CALLBACKS, Phase
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.finetune.history import read_history
from flexora.verbs.checks import checks
from flexora.verbs.settings import Recipe
from tests.reliability.test_requeue import STEP
from tests.reliability.test_secrets import TOKEN
from tests.verbs.test_bad_input import failing

STOPPING = "{class_path: EarlyStopping, init_args: {monitor: val_loss, min_delta: 1000, patience: 1}}"


@pytest.mark.parametrize("labels", [["no", "yes"], ["off", "on"], ["2024-01-31", "12:30"], ["1", "null"]])
def test_a_text_stays_a_text(labels: list[str], recipe: Callable[..., Path], tmp_path: Path) -> None:
    """YAML has other ideas of some words: a recipe's own, in quotes, and those that a run keeps."""
    flags = ["--data=JsonlMultipleChoice", f"--data.source={tmp_path}", f"--data.choices={labels}"]
    parsed = Recipe("run", ["--config", str(recipe()), *flags])
    assert parsed.sections["data"]["init_args"]["choices"] == labels
    (tmp_path / "kept.yaml").write_text(parsed.text)
    assert Recipe("run", ["--config", str(tmp_path / "kept.yaml")]).sections == parsed.sections


def test_another_class_keeps_what_both_know(recipe: Callable[..., Path]) -> None:
    before = Recipe("run", ["--config", str(recipe()), "--search.estimator.last=1"]).sections
    after = Recipe("run", ["--config", str(recipe()), "--data=BoolQ", "--search.estimator=FirstOrder"]).sections
    assert after["data"]["class_path"] == "flexora.BoolQ"
    assert after["data"]["init_args"]["batch_size"] == before["data"]["init_args"]["batch_size"] == 4
    assert "last" not in after["search"]["estimator"]["init_args"]


@pytest.mark.parametrize("verb", ["run", "finetune", "validate"])
def test_a_flag_that_a_phases_own_setting_makes_void_is_refused(verb: str, recipe: Callable[..., Path]) -> None:
    arguments = ["--config", str(recipe()), "--trainer.max_epochs", "1"]
    expected = r"^--trainer.max_epochs: the recipe's finetune.trainer.max_epochs 2 stands .*give --finetune.trainer"
    with pytest.raises(FlexoraError, match=expected):
        Recipe(verb, arguments)
    for own in (["--finetune.trainer.max_epochs=3"], ["--finetune.trainer={max_epochs: 3}"]):
        assert Recipe(verb, [*arguments, *own]).trainer("finetune")["max_epochs"] == 3
    same = ["--config", str(recipe()), "--trainer.max_epochs=2"]
    assert Recipe(verb, same).trainer("finetune")["max_epochs"] == 2


@pytest.mark.parametrize(
    ("own", "flags", "told"),
    [
        ("trainer: {max_epochs: 7}", [], True),
        ("trainer: {max_epochs: 7}", ["--finetune.trainer.max_epochs=3"], False),
        ("trainer: {max_epochs: 2}", [], False),
        ("trainer: {max_epochs: 7}\nfinetune: {trainer: {max_epochs: 3}}", [], False),
        ("trainer: {max_steps: 7}", [], False),
    ],
    ids=["shadowed", "a flag", "the same", "both", "another"],
)
def test_a_later_files_setting_that_has_no_effect_is_told(
    own: str,
    flags: list[str],
    told: bool,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(own)
    files = ["--config", str(recipe()), f"--config={mine}"]
    line = "trainer.max_epochs 7 is not followed: finetune.trainer.max_epochs is 2; set that one\n"
    for verb, says in (("run", told), ("finetune", told), ("search", False)):
        Recipe(verb, [*files, *flags])
        assert capsys.readouterr().err == line * says
    Recipe("run", [files[2], *files[:2]])  # the other way round the recipe's own is the later one
    assert not capsys.readouterr().err


def test_a_flag_that_another_phases_setting_would_make_void(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(recipe()), "--trainer.max_epochs=1"]
    for verb in ("search", "evaluate"):
        assert Recipe(verb, arguments).trainer("finetune")["max_epochs"] == 2
    assert "finetune.trainer.max_epochs 2 stands in its place" in failing(["run", *arguments], capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("accelerator", "devices", "expected"),
    [("auto", "auto", 4), ("gpu", "-1", 4), ("cpu", "auto", 1), ("cpu", "3", 3), ("auto", "[0,2]", 2)],
)
def test_all_gpus_count_where_their_number_is_open(
    accelerator: str, devices: str, expected: int, recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    flags = [f"--trainer.accelerator={accelerator}", f"--trainer.devices={devices}"]
    parsed = Recipe("run", ["--config", str(recipe()), *flags])
    assert [parsed.devices(phase) for phase in get_args(Phase)] == [expected] * 3
    several = Recipe("run", ["--config", str(recipe()), *flags, "--evaluate.trainer.num_nodes=2"])
    assert several.devices("evaluate") == 2 * expected


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("--finetune.prefix_cache=1", "prefix_cache: on several devices"), ("--evaluate.referee=lm-eval", "one device")],
)
def test_what_needs_one_device_is_refused_before_the_search(
    flag: str,
    expected: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    flags = ["--trainer.accelerator=auto", "--trainer.devices=auto", flag]
    assert expected in failing(["run", "--config", str(recipe()), *flags], capfd)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("trainer", "[{class_path: ModelCheckpoint}]"),
        ("trainer", "OnExceptionCheckpoint"),
        ("finetune.trainer", "[{class_path: lightning.pytorch.callbacks.ModelCheckpoint}]"),
        ("finetune.trainer", "ModelCheckpoint"),
    ],
)
def test_checkpoints_beside_a_phases_own_are_refused(section: str, value: str, recipe: Callable[..., Path]) -> None:
    name = "OnExceptionCheckpoint" if "OnException" in value else "ModelCheckpoint"
    init = ".init_args.dirpath=here" if value == "OnExceptionCheckpoint" else None
    flags = [f"--{section}.callbacks={value}", *([f"--{section}.callbacks{init}"] if init else [])]
    parsed = Recipe("run", ["--config", str(recipe()), *flags])
    with pytest.raises(FlexoraError, match=f"^{section}.callbacks: {name}: every phase keeps its own checkpoints"):
        deque(check() for check in checks(parsed, get_args(Phase), trains=True))


def test_checkpoints_are_refused_in_one_line(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config", str(recipe()), "--trainer.callbacks=[{class_path: ModelCheckpoint}]"]
    assert "trainer.callbacks: ModelCheckpoint: every phase keeps" in failing(["run", *flags], capfd)
    assert not (tmp_path / "out").exists()
    assert main(["validate", flags[1], flags[2]]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "trainer.callbacks: ModelCheckpoint: every phase keeps its own checkpoints" in line


@pytest.mark.parametrize("name", REFUSED_CALLBACKS)
def test_callbacks_that_change_what_is_trained_or_saved_are_refused(name: str, recipe: Callable[..., Path]) -> None:
    path = f"lightning.pytorch.callbacks.{name}"
    parsed = Recipe("run", ["--config", str(recipe()), f"--finetune.trainer.callbacks=[{{class_path: {path}}}]"])
    with pytest.raises(FlexoraError, match=rf"^finetune.trainer.callbacks: {name}: .*; remove it"):
        deque(check() for check in checks(parsed, get_args(Phase), trains=True))


def test_callbacks_on_top_of_the_shared_ones(recipe: Callable[..., Path]) -> None:
    shared = ["--config", str(recipe()), "--trainer.callbacks=[{class_path: LearningRateMonitor}]"]
    parsed = Recipe("run", [*shared, "--finetune.trainer.callbacks+={class_path: Timer}"])
    names = {phase: [one["class_path"] for one in parsed.trainer(phase)["callbacks"]] for phase in get_args(Phase)}
    monitor = "lightning.pytorch.callbacks.LearningRateMonitor"
    assert names == {"search": [monitor], "finetune": [monitor, "Timer"], "evaluate": [monitor]}
    with pytest.raises(FlexoraError, match=r"callbacks\+: the last one alone would count; give it once"):
        Recipe("run", [*shared, *(f"--finetune.trainer.callbacks+={name}" for name in ("Timer", "ModelSummary"))])
    parsed = Recipe("run", [*shared, "--finetune.trainer.callbacks+=[Timer, ModelSummary]"])
    assert len(parsed.trainer("finetune")["callbacks"]) == 3
    parsed = Recipe("run", [*shared, "--finetune.trainer.callbacks+=ModelCheckpoint"])
    with pytest.raises(FlexoraError, match=r"^finetune\.trainer\.callbacks: ModelCheckpoint: every phase keeps"):
        deque(check() for check in checks(parsed, get_args(Phase), trains=True))


def test_early_stopping_is_for_the_fine_tune_alone(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """In a search, whose loss has another name, it would fail at the first step."""
    arguments = ["--config", str(recipe()), f"--trainer.callbacks=[{STOPPING}]", "--finetune.trainer.max_epochs=4"]
    assert main(["search", *arguments, "--search.outer_steps=1"]) == 0
    assert main(["finetune", *arguments, "--selection=0"]) == 0
    assert len(read_history(tmp_path / "out" / "finetune" / "history.csv")) == 2


@pytest.mark.parametrize("value", ["[{class_path: RichProgressBar}]", "TQDMProgressBar"])
def test_a_bar_of_the_users_stands_in_the_place_of_ours(value: str, recipe: Callable[..., Path]) -> None:
    """Lightning refuses two; a phase's own section may name one by its class alone."""
    flags = ["--trainer.enable_progress_bar=true", f"--search.trainer.callbacks={value}", "--search.outer_steps=1"]
    assert main(["search", "--config", str(recipe()), *flags]) == 0


def logged(folder: Path) -> dict[str, Any]:
    """What a phase's CSV logger was told of the recipe."""
    settings: dict[str, Any] = yaml.safe_load((folder / "logs" / "csv" / "version_0" / "hparams.yaml").read_text())
    return settings


def test_loggers_get_the_recipe_without_its_secrets(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "correct horse battery")
    flags = ["--config", str(recipe()), f"--report.title={TOKEN} correct horse battery", "--search.outer_steps=1"]
    assert main(["search", *flags]) == 0
    assert main(["finetune", *flags, "--selection=0", "--finetune.trainer.max_epochs=1"]) == 0
    for phase in ("search", "finetune"):
        settings = logged(tmp_path / "out" / phase)
        assert settings["search"]["outer_steps"] == 1
        assert settings["report"]["title"] == "<hidden> <hidden>"
        for file in (tmp_path / "out" / phase / "logs").rglob("*"):
            if file.is_file():
                assert TOKEN.encode() not in file.read_bytes()
                assert b"correct horse" not in file.read_bytes()
    assert logged(tmp_path / "out" / "finetune")["finetune"]["selection"] == "0"


@pytest.mark.parametrize("value", ["WandbLogger", "[{class_path: WandbLogger}]"])
@pytest.mark.parametrize("verb", ["search", "run", "estimate", "validate"])
def test_a_logger_whose_package_is_missing_is_told_in_one_line(
    verb: str,
    value: str,
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    missing = RequirementCache("wandb>=9999")
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", missing)
    config = [str(recipe())] if verb == "validate" else ["--config", str(recipe())]
    assert main([verb, *config, f"--trainer.logger={value}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "trainer: WandbLogger: Requirement 'wandb>=9999' not met. HINT: Try running `pip install" in line


@pytest.mark.parametrize("tasks", ["1", "2"])  # a job of two tasks has one process too, until srun starts them
def test_one_process_of_slurms_for_several_devices_is_refused(
    tasks: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in (STEP | {"SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks}).items():
        monkeypatch.setenv(name, value)
    flags = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    line = failing(["search", "--config", str(recipe()), *flags], capfd)
    assert "ask for 2 processes, but the launcher started 1; under SLURM call srun --ntasks-per-node=2 flexora" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("world", "devices", "expected"),
    [
        ({"WORLD_SIZE": "2"}, 1, "num_nodes is 1, but torchrun started 2 processes; set trainer.devices to 2"),
        (
            {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"},
            2,
            "num_nodes is 2, but torchrun started 6 processes; set trainer.devices to 3 and trainer.num_nodes to 2",
        ),
    ],
)
def test_other_processes_of_torchruns_than_devices_are_refused(
    world: dict[str, str],
    devices: int,
    expected: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    started = {"TORCHELASTIC_RUN_ID": "tests", "GROUP_RANK": "0", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in (started | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | world).items():
        monkeypatch.setenv(name, value)
    line = failing(["search", "--config", str(recipe()), f"--trainer.devices={devices}"], capfd)
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_run_takes_layers_as_finetune_does(
    recipe: Callable[..., Path], tmp_path: Path, phases_in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(recipe()), "--selection", "all"]
    epochs = ["--finetune.trainer.max_epochs=1", "--evaluate.arms=[flexora]"]
    assert main(["run", *arguments, *epochs]) == 0
    assert not (tmp_path / "out" / "search").exists()
    chosen = yaml.safe_load((tmp_path / "out" / "finetune" / "selection.json").read_text())
    assert chosen["layers"] == [0, 1, 2, 3]
    capfd.readouterr()
    for selection, modules in (("0,1", 4), ("all", 8)):  # q_proj and v_proj of each
        assert main(["estimate", "--config", str(recipe()), f"--selection={selection}"]) == 0
        assert f"adapter: {modules} modules" in capfd.readouterr().out
