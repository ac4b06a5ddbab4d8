"""Scoring as a LightningModule, so that precision, device and progress bar are Lightning's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from peft import PeftModel
from torch import distributed
from transformers import PreTrainedModel

from flexora.backbone.adapters import load_adapter
from flexora.backbone.limits import require_trainer
from flexora.backbone.loading import Backbone
from flexora.errors import FlexoraError
from flexora.scoring.accuracy import RowScore
from flexora.scoring.generation import generate
from flexora.scoring.likelihood import choice_log_likelihoods

if TYPE_CHECKING:
    from flexora.data.batch import Batch
    from flexora.data.datamodule import AnswerDataModule
    from flexora.data.generative import GenerativeDataModule, PromptBatch


class ScoreModule(L.LightningModule):
    """Collects the log-likelihood of every choice of the reported rows, and answers that are to be generated.

    Under DDP each process scores its share, and all of them hold every row in the end.

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
        self.generated: dict[int, str] = {}
        self.data: AnswerDataModule | None = None

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
        """Refuse what would round the adapter, and strategies that cannot be followed."""
        require_trainer(self.trainer, "evaluate")

    def on_test_start(self) -> None:
        """Forget the rows of another benchmark."""
        self.log_likelihoods.clear()
        self.generated.clear()

    def test_step(self, batch: Batch | PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score one batch, or answer its prompts."""
        assert self.model is not None, "configure_model has not run yet"
        if "prompts" in batch:
            self._answer(cast("PromptBatch", batch))
            return
        scores = choice_log_likelihoods(self.model, batch)
        parts = torch.split(scores, batch["choices"].tolist())
        for row, part in zip(batch["rows"].tolist(), parts, strict=True):
            self.log_likelihoods[row] = part.tolist()

    def on_test_epoch_end(self) -> None:
        """Collect what the other processes scored; a row that two of them have counts once."""
        if self.trainer.world_size == 1:
            return
        everyone: list[Any] = [None] * self.trainer.world_size
        distributed.all_gather_object(everyone, (self.log_likelihoods, self.generated))
        for log_likelihoods, generated in everyone:
            self.log_likelihoods |= log_likelihoods
            self.generated |= generated

    def require_rows(self, count: int) -> None:
        """Make sure that every row was scored.

        Args:
            count: Number of rows. Where there are log-likelihoods and generated answers, each row needs both.

        Raises:
            FlexoraError: If some were not.
        """
        found = min((len(rows) for rows in (self.log_likelihoods, self.generated) if rows), default=0)
        if found < count:
            raise FlexoraError(
                f"evaluate: {count - found} of {count} rows were not scored; remove what limits them from trainer or "
                "evaluate.trainer (limit_test_batches, fast_dev_run)"
            )

    def _answer(self, batch: PromptBatch) -> None:
        assert self.model is not None
        data = cast("GenerativeDataModule", self.data)
        texts = generate(self.model, data.tokenizer, batch["prompts"], data.max_new_tokens, data.stops)
        self.generated |= zip(batch["rows"].tolist(), texts, strict=True)


def score(trainer: L.Trainer, module: ScoreModule, data: AnswerDataModule) -> list[RowScore]:
    """Score the reported rows of a benchmark, in their order.

    Args:
        trainer: Decides device and precision.
        module: Base model, with or without an adapter.
        data: The benchmark.

    Raises:
        FlexoraError: If the Trainer left rows out.
    """
    module.data = data
    trainer.test(module, datamodule=data, verbose=False)
    rows = data.reported_set
    module.require_rows(len(rows))
    facts = zip(rows["chars"], rows["answer"], rows["answer_tokens"], strict=True)
    scores = [
        RowScore(module.log_likelihoods[index], chars, answer, tokens)
        for index, (chars, answer, tokens) in enumerate(facts)
    ]
    if not module.generated:
        return scores
    answers = cast("GenerativeDataModule", data)
    texts = [module.generated[index] for index in range(len(scores))]
    return [
        replace(row, generated=text, matches=answers.matches(text, answer))
        for row, text, answer in zip(scores, texts, answers.answers, strict=True)
    ]
