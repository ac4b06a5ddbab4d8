"""The search as a LightningModule: manual optimisation, one training step per outer step."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import lightning as L
import torch
from peft import LoraConfig
from torch import nn

from flexora.backbone.adapters import attach, trainable_parameters
from flexora.backbone.limits import require_trainer
from flexora.backbone.loading import Backbone, describe
from flexora.data.bilevel import BilevelDataModule, OuterBatch
from flexora.errors import FlexoraError
from flexora.scoring.likelihood import answer_loss
from flexora.search.estimators import Estimator, OuterStep, Unrolled
from flexora.search.gates import Gates, gates_of
from flexora.search.history import HistoryRow, averaged_alpha, choice_frequency
from flexora.search.inner import AdamW, ClipByNorm, InnerOptimizer, InnerState
from flexora.search.problem import BilevelProblem
from flexora.search.rules import Positive, SelectionRule
from flexora.search.selection import Selection, SelectionBase, SelectionData, Stability, resolve_selection

#: Dropout seeds of successive outer steps lie this far apart.
OUTER_SEED_STRIDE = 1_000_000


class SearchModule(L.LightningModule):
    """Finds the decoder layers that deserve LoRA: K outer Adam steps on alpha, each after T inner steps on LoRA.

    Train it with the bilevel batches of a DataModule (``data.bilevel(...)``); then :meth:`selection` gives the result.

    Args:
        backbone: The base model.
        adapter: PEFT's LoRA configuration; ``target_modules`` takes short names, ``all-linear``, or nothing for the
            paper's query and value.
        outer_steps: Number of outer steps K.
        inner_steps: Inner steps T before each outer step.
        batch_size: Rows of each micro-batch, on both levels.
        accumulate: Micro-batches of each inner step.
        validation_batches: Micro-batches of the outer objective.
        estimator: Hypergradient estimator.
        inner_optimizer: Update rule of LoRA.
        clip_norm: Largest norm of an inner gradient; none switches clipping off.
        alpha_lr: Learning rate of Adam on alpha.
        rule: Selection rule.
        average_last: Outer steps at the end over which alpha is averaged: Adam gives noise and signal the same step.
        checkpoint_every: Outer steps between two checkpoints.
        illustrative: Mark the result as one of a short search, for the report.
        seed: Seed of LoRA's initial weights and of dropout. Recipes fill it in from their own section.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: LoraConfig,
        outer_steps: int = 100,
        inner_steps: int = 2,
        batch_size: int = 8,
        accumulate: int = 1,
        validation_batches: int = 1,
        estimator: Estimator | None = None,
        inner_optimizer: InnerOptimizer | None = None,
        clip_norm: float | None = 1.0,
        alpha_lr: float = 0.01,
        rule: SelectionRule | None = None,
        average_last: int = 10,
        checkpoint_every: int = 5,
        illustrative: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"outer_steps": outer_steps, "inner_steps": inner_steps, "batch_size": batch_size}
        counts |= {"accumulate": accumulate, "validation_batches": validation_batches}
        counts |= {"average_last": average_last, "checkpoint_every": checkpoint_every}
        for name, value in counts.items():
            if value < 1:
                raise FlexoraError(f"search.{name}: {value} is too small; give at least 1")
        if adapter.rank_pattern:
            raise FlexoraError(
                "adapter.rank_pattern: the search compares layers of one size; remove it, or fine-tune with --selection"
            )
        self.automatic_optimization = False
        self.strict_loading = False  # the frozen base model is in no checkpoint
        self.backbone = backbone
        self.adapter = adapter
        self.outer_steps = outer_steps
        self.inner_steps = inner_steps
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.validation_batches = validation_batches
        self.estimator = estimator or Unrolled()
        self.inner_optimizer = inner_optimizer or AdamW()
        self.clip = ClipByNorm(clip_norm)
        self.alpha_lr = alpha_lr
        self.rule = rule or Positive()
        self.average_last = average_last
        self.checkpoint_every = checkpoint_every
        self.illustrative = illustrative
        self.seed = seed
        self.history: list[HistoryRow] = []
        self.problem: BilevelProblem | None = None

    def configure_model(self) -> None:
        """Load the base model, put LoRA on every layer, and open all gates."""
        if self.problem is not None:
            return
        torch.manual_seed(self.seed)  # LoRA's A is drawn at random
        base = self.backbone.load_model()
        self.architecture = describe(base.config)
        family, layers = self.architecture.family, self.architecture.num_layers
        everything = resolve_selection(
            "all", self.architecture.name, layers, family.expand(self.adapter.target_modules)
        )
        self.model = attach(base, self.adapter, everything, family)
        self.projections = everything.targets[0]
        self.layer_parameters = trainable_parameters(self.model) // layers
        self.rule([0.0] * layers, self.layer_parameters)  # a rule that cannot be met is refused before the search
        self.alpha = nn.Parameter(torch.zeros(layers))
        gates = Gates(self.model, family.layers, layers)
        self.problem = BilevelProblem(self.model, gates, self.alpha, self.inner_optimizer, self.clip, answer_loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on alpha; LoRA has its own differentiable update rule."""
        return torch.optim.Adam([self.alpha], lr=self.alpha_lr)

    def setup(self, stage: str) -> None:
        """Refuse what the search cannot do exactly."""
        require_trainer(self.trainer, "search")

    @property
    def outer_step(self) -> int:
        """Outer steps done. Lightning's own counter would count every optimiser's steps."""
        return len(self.history)

    def on_train_start(self) -> None:
        """Bring the inner optimiser's buffers to theta's device and precision: they were made before it got there."""
        problem = self._problem
        kept = zip(problem.theta, problem.state.buffers, strict=True)
        problem.state = InnerState(problem.state.step, [[b.to(theta) for b in buffers] for theta, buffers in kept])

    def training_step(self, batch: OuterBatch, batch_idx: int) -> None:
        """One outer step: T inner steps on LoRA, the hypergradient, and one Adam step on alpha."""
        problem = self._problem
        seed = self.seed * OUTER_SEED_STRIDE * 1_000 + self.outer_step * OUTER_SEED_STRIDE
        step = self.estimator(problem, batch, seed)
        self._require_finite(step)
        self.alpha.grad = step.hypergradient.to(self.alpha.dtype)
        self._outer_optimizer.step()
        self.history.append(
            HistoryRow(
                outer_step=self.outer_step + 1,
                train_loss=step.train_loss,
                validation_loss=step.validation_loss,
                hypergradient_norm=float(step.hypergradient.norm()),
                alpha=self.alpha.detach().tolist(),
            )
        )
        row = self.history[-1]
        metrics = {"train_loss": row.train_loss, "validation_loss": row.validation_loss}
        self.log_dict(metrics, prog_bar=True, logger=False)
        metrics |= {"hypergradient_norm": row.hypergradient_norm}
        gates = gates_of(self.alpha.detach()).tolist()
        metrics |= {f"gate/{layer}": gate for layer, gate in enumerate(gates)}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.outer_step)

    def on_train_end(self) -> None:
        """Give PEFT its own scaling back."""
        self._problem.gates.restore()

    @property
    def _problem(self) -> BilevelProblem:
        assert self.problem is not None, "configure_model has not run yet"
        return self.problem

    @property
    def _outer_optimizer(self) -> torch.optim.Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def _require_finite(self, step: OuterStep) -> None:
        values = {"training loss": step.train_loss, "validation loss": step.validation_loss}
        values["hypergradient"] = float(step.hypergradient.abs().sum())
        for name, value in values.items():
            if not torch.isfinite(torch.tensor(value)):
                raise FlexoraError(
                    f"search: the {name} of outer step {self.outer_step + 1} is {value}; alpha was not changed; "
                    "lower search.inner_optimizer.lr or set search.clip_norm"
                )

    def snapshot(self) -> dict[str, Any]:
        """Everything that the next outer step depends on; the frozen base model is not part of it."""
        problem = self._problem
        return {
            "alpha": self.alpha.detach(),
            "theta": [parameter.detach() for parameter in problem.theta],
            "inner_step": problem.state.step,
            "inner_buffers": problem.state.buffers,
            "outer_optimizer": self._outer_optimizer.state_dict(),
            "history": [asdict(row) for row in self.history],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Continue from a :meth:`snapshot`; call it once the optimisers exist (``on_train_start`` or later)."""
        problem = self._problem
        with torch.no_grad():
            self.alpha.copy_(snapshot["alpha"])
        problem.move(snapshot["theta"])
        problem.state = InnerState(snapshot["inner_step"], snapshot["inner_buffers"])
        self._outer_optimizer.load_state_dict(snapshot["outer_optimizer"])
        self.history = [HistoryRow(**row) for row in snapshot["history"]]

    def selection(self) -> Selection:
        """The chosen layers with all that is known about the choice.

        Raises:
            FlexoraError: If no outer step was made.
        """
        if not self.history:
            raise FlexoraError("search: no outer step was made, so there is nothing to select from; run the search")
        last = self.history[-self.average_last :]
        alpha = averaged_alpha(last)
        layers = self.rule(alpha, self.layer_parameters)
        frequency = choice_frequency(last, self.rule, self.layer_parameters)
        packages = ("flexora", "torch", "lightning", "transformers", "peft", "datasets")
        return Selection(
            base=SelectionBase(
                architecture=self.architecture.name,
                num_layers=len(alpha),
                model=self.backbone.model,
                revision=self.backbone.revision,
            ),
            layers=layers,
            targets=dict.fromkeys(layers, self.projections),
            alpha=alpha,
            gates=gates_of(torch.tensor(alpha, dtype=torch.float64)).tolist(),
            rule=self.rule.describe(),
            stability=Stability(last_steps=len(last), frequency=frequency),
            search=self._settings(),
            data=self._data(),
            seed=self.seed,
            versions={name: version(name) for name in packages},
        )

    def _settings(self) -> dict[str, Any]:
        settings = {
            "outer_steps": self.outer_step,
            "inner_steps": self.inner_steps,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "validation_batches": self.validation_batches,
            "estimator": {"name": type(self.estimator).__name__, **vars(self.estimator)},
            "inner_optimizer": {"name": type(self.inner_optimizer).__name__, **vars(self.inner_optimizer)},
            "clip_norm": self.clip.max_norm,
            "alpha_lr": self.alpha_lr,
            "average_last": self.average_last,
            "layer_parameters": self.layer_parameters,
        }
        return settings | ({"illustrative": True} if self.illustrative else {})

    def _data(self) -> SelectionData | None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, BilevelDataModule):
            return None
        rows = data.rows
        return SelectionData(
            name=rows.benchmark_name,
            fingerprint=rows.fingerprint,
            train_rows=len(rows.train_set),
            validation_rows=len(rows.validation_set),
        )
