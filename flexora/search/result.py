"""From a finished search to its :class:`Selection`, with all that is known about the choice."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from flexora.data.bilevel import BilevelDataModule
from flexora.errors import FlexoraError
from flexora.search.gates import gates_of
from flexora.search.history import averaged_alpha, last_of_each_repeat
from flexora.search.selection import Repeats, Selection, SelectionBase, SelectionData, Stability
from flexora.search.stability import choice_frequency, mean_jaccard, random_jaccard

if TYPE_CHECKING:
    from flexora.search.module import SearchModule

PACKAGES = ("flexora", "torch", "lightning", "transformers", "peft", "datasets")


def make_selection(search: SearchModule) -> Selection:
    """What the search chose: the rule applied to alpha, averaged over the last outer steps of every repeat.

    Raises:
        FlexoraError: If no outer step was made, in a repeat that has begun, or none moved alpha.
    """
    made = [row for row in search.history if not row.skipped]
    if {row.repeat for row in made} != {row.repeat for row in search.history} or not made:
        raise FlexoraError(
            "search: no outer step was made, so there is nothing to select from; run the search, or mend what made it "
            "leave all steps out"
        )
    units, parameters = search.units, search.unit_parameters
    if len(units) > 1 and not any(value for row in made for value in row.alpha):  # it starts at 0 in every repeat
        raise FlexoraError(
            "search: alpha never moved, for every hypergradient was 0, so there is nothing to select by; look at the "
            "losses in history.csv, and at search.inner_optimizer.lr, search.clip_norm and adapter"
        )
    repeats = last_of_each_repeat(made, search.average_last)
    rows = [row for repeat in repeats for row in repeat]
    alpha = averaged_alpha(rows)
    targets = units.targets(search.rule(alpha, parameters), search.projections)
    alone = [search.rule(averaged_alpha(repeat), parameters) for repeat in repeats]
    agreement = None
    if len(alone) > 1:
        agreement = Repeats(
            choices=[units.targets(choice, search.projections) for choice in alone],
            mean_jaccard=mean_jaccard(alone),
            random_jaccard=random_jaccard([len(choice) for choice in alone], len(units)),
        )
    return Selection(
        base=SelectionBase(
            architecture=search.architecture.name,
            num_layers=units.num_layers,
            model=search.backbone.model,
            revision=search.backbone.revision,
        ),
        layers=sorted(targets),
        targets=targets,
        projections=list(units.projections) if units.projections else None,
        alpha=units.fold(alpha),
        gates=units.fold(gates_of(torch.tensor(alpha, dtype=torch.float64)).tolist()),
        rule=search.rule.describe(),
        stability=Stability(
            last_steps=len(repeats[-1]),
            frequency=units.fold(choice_frequency(rows, search.rule, parameters)),
            repeats=agreement,
        ),
        search=_settings(search),
        data=_data(search),
        seed=search.seed,
        versions={name: version(name) for name in PACKAGES},
    )


def _settings(search: SearchModule) -> dict[str, Any]:
    checked = [row.cosine for row in search.history if row.cosine is not None]
    settings = {
        "outer_steps": search.outer_steps,
        "inner_steps": search.inner_steps,
        "repeats": search.repeats,
        "batch_size": search.batch_size,
        "accumulate": search.accumulate,
        "validation_batches": search.validation_batches,
        "processes": search.trainer.world_size,
        "gates": search.gates,
        "estimator": {"name": type(search.estimator).__name__, **vars(search.estimator)},
        "inner_optimizer": {"name": type(search.inner_optimizer).__name__, **vars(search.inner_optimizer)},
        "inner_schedule": search.inner_schedule,
        "inner_warmup_ratio": search.inner_warmup_ratio,
        "clip_norm": search.clip.max_norm,
        "alpha_lr": search.alpha_lr,
        "average_last": search.average_last,
        "unit_sizes": sorted(set(search.unit_parameters)),
    }
    skipped = sum(row.skipped for row in search.history)
    if skipped:
        settings["skipped_steps"] = skipped
    if checked:
        settings["smallest_cosine_with_exact"] = min(checked)
    return settings | ({"illustrative": True} if search.illustrative else {})


def _data(search: SearchModule) -> SelectionData | None:
    data = getattr(search.trainer, "datamodule", None)
    if not isinstance(data, BilevelDataModule):
        return None
    rows = data.rows
    return SelectionData(
        name=rows.benchmark_name,
        fingerprint=rows.fingerprint,
        train_rows=len(rows.train_set),
        validation_rows=len(rows.validation_set),
    )
