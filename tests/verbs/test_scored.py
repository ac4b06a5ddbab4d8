"""A finished evaluation may be asked for more: nothing is lost, whatever fails or is gone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model

from flexora.backbone.adapter_files import weights_of
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.scoring.results import ArmResult, Comparison, Estimate, Results
from flexora.verbs.scored import asked_for, is_scored, keep_comparisons
from flexora.verbs.settings import Recipe
from tests.tiny import tiny_model
from tests.verbs.test_bad_input import failing
from tests.verbs.test_data import read_lines


def test_a_finished_evaluation_may_be_asked_for_more(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out" / "evaluate"
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    flags = ["--config", str(recipe()), "--evaluate.arms=[base]"]
    more = ["evaluate", *flags, "--evaluate.samples=true"]
    assert main(["evaluate", *flags]) == 0
    assert "already holds a finished run" in failing(["evaluate", *flags], capfd)
    assert "data.num_fewshot 0 -> 1" in failing([*more, "--data.num_fewshot=1"], capfd)

    def fail(*_: object) -> None:
        raise FlexoraError("no memory")

    def written() -> dict[str, str]:
        return {file.name: file.read_text() for file in out.iterdir() if file.name != "usage.json"}  # time passes

    old = written()
    with monkeypatch.context() as patch:
        patch.setattr("flexora.verbs.evaluate.score", fail)
        assert "no memory" in failing(more, capfd)
    assert written() == old

    assert main(more) == 0
    assert {sample["arm"] for sample in read_lines(out / "samples.jsonl")} == {"base"}
    assert (out / "results.json").read_text() == old["results.json"]
    assert main(["evaluate", *flags[:2], f"--adapter={adapter}"]) == 0
    assert [arm.name for arm in Results.read(out / "results.json").arms] == ["base", str(adapter)]
    assert {sample["arm"] for sample in read_lines(out / "samples.jsonl")} == {"base", str(adapter)}
    assert "samples: true" in (out / "config.yaml").read_text()

    def asked(*others: str) -> Recipe:
        return Recipe("run", [*flags, *others])

    with monkeypatch.context() as patch:
        patch.setattr("flexora.verbs.evaluate._ask_referee", fail)
        assert "no memory" in failing([*more, "--evaluate.referee=lm-eval"], capfd)
    assert [arm.name for arm in Results.read(out / "results.json").arms] == ["base", str(adapter)]

    assert is_scored(asked())
    assert is_scored(asked("--evaluate.samples=true"))
    assert not is_scored(asked("--evaluate.referee=lm-eval"))
    assert not is_scored(asked("--evaluate.arms=[base, lora]"))
    assert asked_for(asked())["arms"] == ["base", str(adapter)]
    done, settings = out / "done.json", adapter / "adapter_config.json"
    before, scored = settings.read_text(), json.loads(done.read_text())
    scored["adapters"] = {arm: found and weights_of(found) for arm, found in scored["adapters"].items()}
    settings.write_text(json.dumps(json.loads(before) | {"lora_alpha": 99}))  # the same weights, scaled otherwise
    assert not is_scored(asked(f"--evaluate.arms=[base, {adapter}]"))
    assert asked_for(asked())["arms"] == ["base"]
    done.write_text(json.dumps(scored))  # as it was written before settings were looked at
    assert is_scored(asked(f"--evaluate.arms=[base, {adapter}]"))
    assert asked_for(asked())["arms"] == ["base", str(adapter)]
    with (adapter / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")  # another adapter now
    assert is_scored(asked())
    assert not is_scored(asked(f"--evaluate.arms=[base, {adapter}]"))
    assert asked_for(asked())["arms"] == ["base"]
    assert main(["evaluate", *flags, "--evaluate.referee=lm-eval"]) == 0
    assert f"evaluate: {adapter}: its adapter is not the one that was scored; left out" in " ".join(
        capfd.readouterr().err.split()
    )


def test_named_loggers_get_the_figures_once(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that fails loses nothing; where none is named there are no logs."""
    adapter, out, logs = tmp_path / "adapter", tmp_path / "out", tmp_path / "logs"
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    flags = ["evaluate", "--config", str(recipe()), f"--adapter={adapter}"]
    logger = f"--trainer.logger={{class_path: CSVLogger, init_args: {{save_dir: {logs}, name: csv}}}}"
    assert main([*flags, logger]) == 0
    results = Results.read(out / "evaluate" / "results.json")
    (row,) = csv.DictReader((logs / "csv" / "version_0" / "metrics.csv").read_text().splitlines())
    assert row.pop("step") == "0"
    assert {name: float(value) for name, value in row.items()} == {
        f"{arm.name}/{name}": value
        for arm in results.arms
        for name, value in [("loss", arm.loss), *((name, metric.value) for name, metric in arm.metrics.items())]
    }

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr(CSVLogger, "log_metrics", fail)
    capfd.readouterr()
    assert main([*flags, logger, f"--output_dir={tmp_path / 'two'}"]) == 0
    assert "evaluate: CSVLogger did not take the results: no way" in capfd.readouterr().err
    assert Results.read(tmp_path / "two" / "evaluate" / "results.json") == results
    missing = "--trainer.logger={class_path: WandbLogger, init_args: {name: a}}"  # its package is not there
    assert main([*flags, missing, f"--output_dir={tmp_path / 'three'}"]) == 0
    assert "evaluate: WandbLogger did not take the results: " in capfd.readouterr().err
    assert not (out / "evaluate" / "logs").exists()


def test_what_a_referee_said_stays_with_its_adapter(recipe: Callable[..., Path], tmp_path: Path) -> None:
    asked = Recipe("run", ["--config", str(recipe())])

    def results(*arms: str, **referee: Comparison) -> Results:
        estimate = {"acc": Estimate(value=0.5, stderr=0.1)}
        made = [
            ArmResult(
                name=arm, adapted_layers=0, trainable_parameters=0, metrics=estimate, loss=1.0, referee=referee.get(arm)
            )
            for arm in arms
        ]
        shared = {
            "benchmark": "Made",
            "split": "test",
            "rows": 1,
            "split_rows": 1,
            "model": "m",
            "precision": "32-true",
        }
        return Results(**shared, primary_metric="acc", arms=made)

    said = Comparison(
        referee="r", rows=1, largest=0.0, other_predictions=0, near_ties=0, accuracy=0.5, referee_accuracy=0.5
    )
    (tmp_path / "out" / "evaluate").mkdir(parents=True)
    results("base", "lora", "flexora", base=said, lora=said).write(asked.folder.results)
    asked.folder.finish("evaluate", {"adapters": {"base": None, "lora": "a", "flexora": "b"}})
    new = results("base", "lora", "flexora", "more")
    keep_comparisons(new, asked, {"base": None, "lora": "other", "flexora": "b", "more": "c"})
    assert [arm.referee for arm in new.arms] == [said, None, None, None]
