"""Scoring as a LightningModule, so that precision, device and progress bar are Lightning's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from flexora.backbone.adapters import load_adapter
from flexora.backbone.limits import require_trainer
from flexora.backbone.loading import Backbone
from flexora.scoring.accuracy import RowScore
from flexora.scoring.likelihood import choice_log_likelihoods

if TYPE_CHECKING:
    from flexora.data.batch import Batch
    from flexora.data.multiple_choice import MultipleChoiceDataModule


class ScoreModule(L.LightningModule):
    """Collects the log-likelihood of every choice of the reported rows.

    Args:
        backbone: The base model.
        adapter: A PEFT folder to put on it; none scores the base model.
    """

    def __init__(self, backbone: Backbone, adapter: str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter = adapter
        self.model: PreTrainedModel | PeftModel | None = None
        self.log_likelihoods: dict[int, list[float]] = {}

    def configure_model(self) -> None:
        """Load the base model and the adapter."""
        if self.model is not None:
            return
        base = self.backbone.load_model()
        self.model = base if self.adapter is None else load_adapter(base, Path(self.adapter))

    @property
    def peft_model(self) -> PeftModel:
        """The model with its adapter; exists once ``configure_model`` has run with one."""
        assert isinstance(self.model, PeftModel), "no adapter is loaded"
        return self.model

    def setup(self, stage: str) -> None:
        """Refuse what would round the adapter or count rows twice."""
        require_trainer(self.trainer, "evaluate")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one batch."""
        assert self.model is not None, "configure_model has not run yet"
        scores = choice_log_likelihoods(self.model, batch)
        parts = torch.split(scores, batch["choices"].tolist())
        for row, part in zip(batch["rows"].tolist(), parts, strict=True):
            self.log_likelihoods[row] = part.tolist()


def score(trainer: L.Trainer, module: ScoreModule, data: MultipleChoiceDataModule) -> list[RowScore]:
    """Score the reported rows of a benchmark, in their order.

    Args:
        trainer: Decides device and precision.
        module: Base model, with or without an adapter.
        data: The benchmark.
    """
    trainer.test(module, datamodule=data, verbose=False)
    rows = data.reported_set
    facts = zip(rows["chars"], rows["answer"], rows["answer_tokens"], strict=True)
    return [
        RowScore(module.log_likelihoods[index], chars, answer, tokens)
        for index, (chars, answer, tokens) in enumerate(facts)
    ]
