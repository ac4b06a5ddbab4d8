"""Flexora: flexible low-rank adaptation of large language models (arXiv:2408.10774).

Finds the decoder layers that deserve LoRA by hyperparameter optimisation with unrolled differentiation, then
fine-tunes LoRA on those alone. Names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexora.backbone.loading import Backbone
    from flexora.data.arc import ArcEasy
    from flexora.data.bilevel import BilevelDataModule
    from flexora.data.multiple_choice import MultipleChoiceDataModule
    from flexora.data.piqa import Piqa
    from flexora.errors import FlexoraError
    from flexora.finetune.module import FinetuneModule
    from flexora.scoring.module import ScoreModule
    from flexora.search.estimators import FirstOrder, Unrolled
    from flexora.search.inner import SGD, AdamW
    from flexora.search.module import SearchModule
    from flexora.search.rules import Budget, Positive, Threshold, TopK
    from flexora.search.selection import Selection

_HOMES = {
    "AdamW": "flexora.search.inner",
    "ArcEasy": "flexora.data.arc",
    "Backbone": "flexora.backbone.loading",
    "BilevelDataModule": "flexora.data.bilevel",
    "Budget": "flexora.search.rules",
    "FinetuneModule": "flexora.finetune.module",
    "FirstOrder": "flexora.search.estimators",
    "FlexoraError": "flexora.errors",
    "MultipleChoiceDataModule": "flexora.data.multiple_choice",
    "Piqa": "flexora.data.piqa",
    "Positive": "flexora.search.rules",
    "SGD": "flexora.search.inner",
    "ScoreModule": "flexora.scoring.module",
    "SearchModule": "flexora.search.module",
    "Selection": "flexora.search.selection",
    "Threshold": "flexora.search.rules",
    "TopK": "flexora.search.rules",
    "Unrolled": "flexora.search.estimators",
}

__all__ = [
    "SGD",
    "AdamW",
    "ArcEasy",
    "Backbone",
    "BilevelDataModule",
    "Budget",
    "FinetuneModule",
    "FirstOrder",
    "FlexoraError",
    "MultipleChoiceDataModule",
    "Piqa",
    "Positive",
    "ScoreModule",
    "SearchModule",
    "Selection",
    "Threshold",
    "TopK",
    "Unrolled",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module: importing flexora itself stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flexora' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
