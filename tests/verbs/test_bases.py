"""What was trained on one base model is not used on another, unless it is the same by another name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from flexora.backbone.gguf import PACKAGED_ORIGINALS
from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.verbs.bases import require_same_base, tell_other_base
from tests.tiny import tiny_model, write_jsonl
from tests.verbs.test_bad_input import VALID, failing

COMMIT = "c" * 40
PACKAGED = "packaged:SmolLM2-135M-Instruct"


def section(model: Path | str, revision: str | None = None) -> dict[str, Any]:
    return {"model": str(model), "revision": revision}


def finished(phase: Path, model: Path | str, revision: str | None = None, weights: str | None = None) -> Path:
    """The folder of a phase, as one that was trained on a model leaves it."""
    phase.mkdir(parents=True)
    (phase / "done.json").write_text(json.dumps({"backbone": section(model, revision), "weights": weights}))
    return phase


@pytest.fixture
def models(tiny_models: dict[str, Path], tmp_path: Path) -> dict[str, str]:
    """Names of models: one, the same by other paths, a copy, and another; and the hub's."""
    one, copy = tmp_path / "models" / "one", tmp_path / "models" / "copy"
    shutil.copytree(tiny_models["llama"], one)
    shutil.copytree(one, copy)
    return {
        "one": str(one),
        "by another path": str(tmp_path / "models" / ".." / "models" / "one"),
        "copy": str(copy),
        "gone": str(tmp_path / "models" / "gone"),
        "other": str(tiny_models["glm"]),
    }


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (("one", None), ("one", None), None),
        (("one", None), ("by another path", None), None),
        (("one", None), ("copy", None), None),
        (("gone", None), ("one", None), None),  # moved
        (("one", None), ("other", None), "--backbone.model {one}"),
        (("other", None), ("me/hub", None), None),  # perhaps the same, which is told
        (("me/hub", None), ("one", None), None),
        (("me/hub", None), ("me/hub", "main"), None),
        (("me/hub", None), ("me/hub", None), None),
        (("me/hub", None), ("me/hub", COMMIT), None),  # the one that was newest then
        (("me/hub", "v1"), ("me/hub", "v1"), None),
        (("me/hub", "v1"), ("me/hub", "v2"), "--backbone.revision v1"),
        (("me/hub", "v1"), ("me/other", None), "--backbone.model me/hub --backbone.revision v1"),
        (("me/hub", None), ("me/hub", "v2"), "--backbone.revision null"),
        ((PACKAGED, None), (PACKAGED, None), None),
        (("converted:one", None), ("converted:other", None), "--backbone.model converted:one"),
    ],
    ids=str,
)
def test_another_base_model_is_refused(
    before: tuple[str, str | None],
    now: tuple[str, str | None],
    expected: str | None,
    models: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEXORA_CACHE", str(tmp_path / "cache"))
    if PACKAGED in before:
        (tmp_path / "cache" / "models" / PACKAGED.partition(":")[2]).mkdir(parents=True)
    first = models.get(before[0], before[0])
    there = models["other" if before[0] == "other" else "one"]
    weights = COMMIT if before[0] == "me/hub" else None if PACKAGED in before else Backbone(there).fingerprint()
    phase = finished(tmp_path / "finetune", first, before[1], weights)
    current = section(models.get(now[0], now[0]), now[1])
    if expected is None:
        require_same_base(phase, current, "--adapter: lora")
        return
    with pytest.raises(FlexoraError) as caught:
        require_same_base(phase, current, "--adapter: lora")
    named = expected.format(**models)
    assert str(caught.value).startswith(f"--adapter: lora was trained on {first}")
    assert f"but is to be used on {current['model']}" in str(caught.value)
    assert str(caught.value).endswith(f"; set {named}, or name another")


def test_other_weights_of_the_same_name_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    phase = finished(tmp_path / "finetune", models["one"], None, Backbone(models["other"]).fingerprint())
    with pytest.raises(FlexoraError, match="whose weights have changed since; train it again"):
        require_same_base(phase, section(models["one"]), "--adapter: lora")


@pytest.mark.parametrize("said", ["", "{", "[]", '{"backbone": {"model": 3, "revision": null}}', '{"data": {}}'])
def test_a_phase_that_does_not_say_its_base_model(said: str, tmp_path: Path) -> None:
    (tmp_path / "done.json").write_text(said)
    require_same_base(tmp_path, section("me/hub"), "--adapter: lora")


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("evaluate", ["--evaluate.arms=[flexora]"]),
        ("predict", ["--rows={rows}"]),
        ("merge", []),
        ("run", ["--evaluate.arms=[{adapter}]"]),
        ("finetune", []),
        ("finetune", ["--selection=0", "--warm-start"]),
    ],
    ids=["evaluate", "predict", "merge", "run", "search", "warm start"],
)
def test_verbs_refuse_another_base_model(
    verb: str,
    flags: list[str],
    recipe: Callable[..., Path],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / ("elsewhere" if verb == "run" else "out")
    phase = finished(out / ("search" if verb == "finetune" else "finetune"), tiny_models["mistral"])
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(phase / "adapter")
    (phase / "selection.json").write_text(json.dumps(VALID))
    rows = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "Which?", "choices": ["oak", "elm"]}])
    given = [flag.format(rows=rows, adapter=phase / "adapter") for flag in flags]
    line = failing([verb, "--config", str(recipe()), *given], capfd)
    assert f"was trained on {tiny_models['mistral']}, but is to be used on {tiny_models['llama']}" in line
    assert f"; set --backbone.model {tiny_models['mistral']}" in line


@pytest.mark.parametrize(
    ("named", "model", "told"),
    [
        ("one", "one", False),
        ("one", "by another path", False),
        ("other", "one", True),
        ("me/hub", "one", True),
        ("me/hub", "me/hub", False),
        ("", "one", False),
        (None, "one", False),
        (PACKAGED_ORIGINALS["SmolLM2-135M-Instruct"], PACKAGED, False),
        ("meta-llama/Meta-Llama-3-8B", PACKAGED, True),
        ("THUDM/chatglm3-6b", "converted:chatglm3-6b", False),
    ],
)
def test_an_adapter_from_elsewhere_that_names_another_base_model_is_told_of(
    named: str | None,
    model: str,
    told: bool,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"base_model_name_or_path": models.get(str(named), named)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    tell_other_base(tmp_path, section(models.get(model, model)), "evaluate: theirs")
    lines = capsys.readouterr().err.splitlines()
    expected = f"evaluate: theirs names {settings['base_model_name_or_path']} as its base model; here it is used on "
    assert lines == ([expected + models.get(model, model)] if told else [])


def test_an_adapter_from_elsewhere_is_used_all_the_same(
    recipe: Callable[..., Path], tiny_models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama")
    model.name_or_path = "me/hub"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "theirs")
    assert main(["evaluate", "--config", str(recipe()), f"--adapter={tmp_path / 'theirs'}"]) == 0
    told = f"evaluate: {tmp_path / 'theirs'} names me/hub as its base model; here it is used on {tiny_models['llama']}"
    assert told in capfd.readouterr().err
