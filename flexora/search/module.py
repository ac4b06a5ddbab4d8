"""The search as a LightningModule: manual optimisation, one training step per outer step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from peft import PeftConfig
from torch import nn

from flexora.backbone.adapters import attach, draw_again
from flexora.backbone.limits import require_trainer
from flexora.backbone.loading import Backbone, describe
from flexora.data.bilevel import REPEAT_STRIDE, BilevelDataModule, OuterBatch
from flexora.data.datamodule import AnswerDataModule
from flexora.errors import FlexoraError, require_at_least
from flexora.finite import NonFiniteError
from flexora.randomness import step_seed
from flexora.scoring.likelihood import answer_loss
from flexora.search.adapter import plain_lora
from flexora.search.estimators import Estimator, FirstOrder, cosine, exact_hypergradient
from flexora.search.gates import Gates, gates_of
from flexora.search.history import HistoryRow
from flexora.search.inner import AdamW, ClipByNorm, InnerOptimizer
from flexora.search.named import resolve_selection
from flexora.search.problem import BilevelProblem
from flexora.search.processes import Processes
from flexora.search.result import make_selection
from flexora.search.rules import Positive, SelectionRule
from flexora.search.schedule import ScheduleName, schedule
from flexora.search.selection import Selection
from flexora.search.skipping import left_out
from flexora.search.units import Units


class SearchModule(L.LightningModule):
    """Finds the decoder layers that deserve LoRA: K outer Adam steps on alpha, each after T inner steps on LoRA.

    Train it with the bilevel batches of a DataModule (``data.bilevel(...)``); then :meth:`selection` gives the result.

    Args:
        backbone: The base model.
        adapter: PEFT's configuration of plain LoRA; ``target_modules`` takes short names, ``all-linear``, or nothing
            for the paper's query and value. What the fine-tune alone shall have goes to ``finetune.adapter``.
        outer_steps: Number of outer steps K of each repeat.
        inner_steps: Inner steps T before each outer step.
        repeats: Searches, one after another, each with its own start of LoRA, order of rows, dropout and held-out rows;
            alpha is averaged over them, and how far their choices agree is reported.
        batch_size: Rows of each micro-batch, on both levels, on each device.
        accumulate: Micro-batches of each inner step, on each device.
        validation_batches: Micro-batches of the outer objective, on each device.
        gates: What has a gate, and an entry of alpha, of its own: a ``layer`` (the paper), or a ``module``, which is an
            adapted projection of a layer.
        estimator: Hypergradient estimator; first order by default, which chooses what the unrolled one does where LoRA
            moves little in T steps (see :class:`~flexora.search.estimators.FirstOrder`).
        inner_optimizer: Update rule of LoRA.
        inner_schedule: Learning rate of LoRA over all inner steps of a repeat, after the warm-up.
        inner_warmup_ratio: Share of the inner steps over which the learning rate rises from 0.
        clip_norm: Largest norm of an inner gradient; none switches clipping off.
        alpha_lr: Learning rate of Adam on alpha.
        rule: Selection rule.
        average_last: Outer steps at the end over which alpha is averaged: Adam gives noise and signal the same step.
        check_every: Compare the hypergradient with the exact one whenever so many outer steps are done, and log their
            cosine: at 0.99 the estimate can be trusted, at 0.5 it is noise. A check costs about two outer steps, and
            the memory of one micro-batch's second-order graph; by default there is none.
        checkpoint_every: Outer steps between two checkpoints.
        keep_checkpoints: How many of the newest are kept: an older one is used where a newer one is damaged.
        skip_non_finite: Outer steps that may be left out because a value in them is infinite or not a number; one more
            stops the search.
        illustrative: Mark the result as one of a short search, for the report.
        seed: Seed of LoRA's initial weights and of dropout. Recipes fill it in from their own section.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: PeftConfig,
        outer_steps: int = 100,
        inner_steps: int = 2,
        repeats: int = 1,
        batch_size: int = 8,
        accumulate: int = 1,
        validation_batches: int = 1,
        gates: Literal["layer", "module"] = "layer",
        estimator: Estimator | None = None,
        inner_optimizer: InnerOptimizer | None = None,
        inner_schedule: ScheduleName = "constant",
        inner_warmup_ratio: float = 0.0,
        clip_norm: float | None = 1.0,
        alpha_lr: float = 0.01,
        rule: SelectionRule | None = None,
        average_last: int = 10,
        check_every: int | None = None,
        checkpoint_every: int = 5,
        keep_checkpoints: int = 2,
        skip_non_finite: int = 0,
        illustrative: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"outer_steps": outer_steps, "inner_steps": inner_steps, "batch_size": batch_size}
        counts |= {"accumulate": accumulate, "validation_batches": validation_batches}
        counts |= {"average_last": average_last, "repeats": repeats, "checkpoint_every": checkpoint_every}
        require_at_least(1, "search", counts | {"keep_checkpoints": keep_checkpoints, "check_every": check_every})
        require_at_least(0, "search", {"skip_non_finite": skip_non_finite})
        if not 0 <= inner_warmup_ratio < 1:
            raise FlexoraError(f"search.inner_warmup_ratio: {inner_warmup_ratio} must lie in [0, 1)")
        for name, value in {"alpha_lr": alpha_lr, "clip_norm": clip_norm}.items():
            if value is not None and not value > 0:  # alpha or LoRA would stay at its start, or climb
                hint = "; null switches clipping off" if name == "clip_norm" else ""
                raise FlexoraError(f"search.{name}: {value} must be positive{hint}")
        self.automatic_optimization = False
        self.strict_loading = False  # the frozen base model is in no checkpoint
        self.backbone = backbone
        self.adapter = plain_lora(adapter, repeats)
        self.outer_steps = outer_steps
        self.inner_steps = inner_steps
        self.repeats = repeats
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.validation_batches = validation_batches
        self.gates = gates
        self.estimator = estimator or FirstOrder()
        self.inner_optimizer = inner_optimizer or AdamW()
        self.inner_schedule = inner_schedule
        self.inner_warmup_ratio = inner_warmup_ratio
        self.clip = ClipByNorm(clip_norm)
        self.alpha_lr = alpha_lr
        self.rule = rule or Positive()
        self.average_last = average_last
        self.check_every = check_every
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.skip_non_finite = skip_non_finite
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
        self.units = self.units_of(layers, self.projections)
        gates = Gates(self.model, family.layers, self.units)
        self.unit_parameters = gates.parameters
        # A rule that cannot be met is refused before the search.
        self.rule([0.0] * len(self.units), self.unit_parameters)
        self.alpha = nn.Parameter(torch.zeros(self.units.shape))
        factors = schedule(self.inner_schedule, self.inner_warmup_ratio, self.outer_steps * self.inner_steps)
        self.problem = BilevelProblem(
            self.model, gates, self.alpha, self.inner_optimizer, self.clip, answer_loss, factors
        )

    def units_of(self, num_layers: int, projections: list[str]) -> Units:
        """What has a gate of its own in a model with so many layers and these projections to adapt."""
        return Units(num_layers, tuple(projections) if self.gates == "module" else None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on alpha; LoRA has its own differentiable update rule."""
        return torch.optim.Adam([self.alpha], lr=self.alpha_lr)

    def setup(self, stage: str) -> None:
        """Refuse what the search cannot do exactly.

        Raises:
            FlexoraError: If precision or strategy do not allow it, or the batches are made for other settings.
        """
        require_trainer(self.trainer, "search", self.backbone.dtype)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, AnswerDataModule):
            raise FlexoraError(
                "search: a benchmark's rows are no outer steps yet; give the Trainer data.bilevel(outer_steps=..., "
                "inner_steps=..., batch_size=...)"
            )
        for name in ("outer_steps", "inner_steps", "batch_size", "accumulate", "validation_batches", "repeats"):
            wanted, given = getattr(self, name), getattr(data, name, None)
            if isinstance(data, BilevelDataModule) and given != wanted:
                raise FlexoraError(
                    f"search: {name} is {wanted}, but data.bilevel was given {given}; give both the same"
                )

    @property
    def outer_step(self) -> int:
        """Outer steps done, in all repeats. Lightning's own counter would count every optimiser's steps."""
        return len(self.history)

    @property
    def total_steps(self) -> int:
        """Outer steps of all repeats."""
        return self.outer_steps * self.repeats

    def on_train_start(self) -> None:
        """Bring the inner optimiser's buffers to theta's device and precision: they were made before it got there."""
        problem = self.bilevel_problem
        kept = zip(problem.theta, problem.state.buffers, strict=True)
        problem.state = replace(problem.state, buffers=[[b.to(theta) for b in buffers] for theta, buffers in kept])
        problem.processes = Processes(self.trainer.global_rank, self.trainer.world_size)

    def training_step(self, batch: OuterBatch, batch_idx: int) -> None:
        """One outer step: T inner steps on LoRA, the hypergradient, and one Adam step on alpha.

        Raises:
            FlexoraError: If the batch is another step's, or the step is not finite and may not be left out.
        """
        if batch["outer_step"] != self.outer_step:
            raise FlexoraError(
                f"search: the loader gives outer step {batch['outer_step'] + 1} where {self.outer_step + 1} is due; "
                "train with data.bilevel(...) and Trainer(max_epochs=1, use_distributed_sampler=False)"
            )
        repeat, step_of_repeat = divmod(self.outer_step, self.outer_steps)
        if repeat and not step_of_repeat:
            self._start_again(repeat)
        seed, problem = step_seed(self.seed, self.outer_step), self.bilevel_problem
        start = (problem.copy_theta(), problem.state) if self.skip_non_finite else None
        try:
            checked = self.check_every is not None and (self.outer_step + 1) % self.check_every == 0
            exact = exact_hypergradient(problem, batch, seed) if checked else None
            step = self.estimator(problem, batch, seed)
        except NonFiniteError as error:
            self.history.append(left_out(self, error, batch, repeat))
            assert start is not None  # none may be left out otherwise
            problem.move(start[0])
            problem.state = replace(start[1], clock=start[1].clock + self.inner_steps)
            return
        self.alpha.grad = step.hypergradient.to(self.alpha.dtype)
        self.outer_optimizer.step()
        row = HistoryRow(
            outer_step=self.outer_step + 1,
            repeat=repeat + 1,
            train_loss=step.train_loss,
            validation_loss=step.validation_loss,
            hypergradient_norm=float(step.hypergradient.norm()),
            alpha=self.alpha.detach().flatten().tolist(),
            cosine=None if exact is None else cosine(step.hypergradient, exact),
        )
        self.history.append(row)
        self._log(row)

    def _start_again(self, repeat: int) -> None:
        """Bring LoRA, alpha and both optimisers to the start of a repeat."""
        torch.manual_seed(self.seed + repeat * REPEAT_STRIDE)
        draw_again(self.model, self.adapter)
        problem = self.bilevel_problem
        problem.state = self.inner_optimizer.init(problem.theta)
        nn.init.zeros_(self.alpha)
        self.outer_optimizer.state.clear()

    def _log(self, row: HistoryRow) -> None:
        metrics = {"train_loss": row.train_loss, "validation_loss": row.validation_loss}
        if row.cosine is not None:
            metrics["cosine_with_exact"] = row.cosine
        self.log_dict(metrics, prog_bar=True, logger=False)
        metrics |= {"hypergradient_norm": row.hypergradient_norm}
        gates = gates_of(self.alpha.detach()).flatten().tolist()
        metrics |= {f"gate/{unit}": gate for unit, gate in zip(self.units, gates, strict=True)}
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.outer_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep LoRA and alpha alone: the frozen base model can be loaded again."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: t for name, t in checkpoint["state_dict"].items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from it: the steps that are done would be left out without a word.

        Raises:
            FlexoraError: In a fit.
        """
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            raise FlexoraError(
                "search: a checkpoint of Lightning's holds no history and no inner optimiser, so no search can go on "
                "from it; leave ckpt_path out (and remove an hpc_ckpt file of Lightning's), and give the Trainer "
                "flexora.search.callbacks.SearchFiles, which resumes"
            )

    def on_train_end(self) -> None:
        """Give PEFT its own scaling back."""
        self.bilevel_problem.gates.restore()

    @property
    def bilevel_problem(self) -> BilevelProblem:
        """The problem; exists once ``configure_model`` has run."""
        assert self.problem is not None, "configure_model has not run yet"
        return self.problem

    @property
    def outer_optimizer(self) -> torch.optim.Optimizer:
        """Adam on alpha; exists once training has started."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def selection(self) -> Selection:
        """The chosen layers with all that is known about the choice.

        Raises:
            FlexoraError: If no outer step was made, or alpha never moved.
        """
        return make_selection(self)

    def save_adapter(self, folder: Path | str) -> None:
        """Write LoRA as the search left it, on all layers, as a plain PEFT folder with the gates inside B.

        LoRA and gates are those after the last outer step: of several repeats, the last one's.
        """
        with self.bilevel_problem.gates.folded(gates_of(self.alpha.detach())):
            self.model.save_pretrained(folder)
