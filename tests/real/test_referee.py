"""The real model and real rows before lm-evaluation-harness; what the packaged splits share."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from flexora.backbone.loading import Backbone
from flexora.data.benchmarks import ArcEasy, CommonsenseQA, OpenBookQA, WinoGrande
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.scoring.module import ScoreModule, score
from flexora.scoring.referee import compare, harness_model, harness_scores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on two layers that is no longer zero."""
    model = get_peft_model(Backbone().load_model(), LoraConfig(r=4, layers_to_transform=[3, 20], lora_alpha=64))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("benchmark", "settings", "adapted"),
    [
        (ArcEasy, {}, False),
        (ArcEasy, {"num_fewshot": 3}, True),
        (ArcEasy, {"prompt_style": "letters", "num_fewshot": 1}, False),
        (WinoGrande, {}, True),
        (WinoGrande, {"num_fewshot": 3}, False),
        (CommonsenseQA, {}, False),
    ],
)
def test_log_likelihoods_equal_the_harness(
    benchmark: type[MultipleChoiceDataModule], settings: dict[str, object], adapted: bool, adapter: Path
) -> None:
    folder = adapter if adapted else None
    data = benchmark(source="packaged", evaluate_rows=8, **settings)
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    ours = score(trainer, ScoreModule(Backbone(), None if folder is None else str(folder)), data)
    found = compare(ours, harness_scores(data, harness_model(data, Backbone(), folder)))
    assert found.rows == 8
    assert found.largest < 1e-3
    assert found.other_predictions == found.near_ties


def test_packaged_train_rows_of_the_reported_split_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    data = OpenBookQA(source="packaged")
    assert (len(data.rows("train")), len(data.train_split), data.reported_rows) == (4957, 4942, 500)
    assert not set(data.train_split["said"]) & set(data.reported_split_rows["said"])
    assert "OpenBookQA: 15 train rows occur in the test split and are left out: row" in capsys.readouterr().err
