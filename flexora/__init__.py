"""Flexora: flexible low-rank adaptation of large language models (arXiv:2408.10774).

Finds the decoder layers that deserve LoRA by hyperparameter optimisation with unrolled differentiation, then
fine-tunes LoRA on those alone. Names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexora.backbone.loading import Backbone
    from flexora.backbone.methods import FullWeights
    from flexora.data.benchmarks import (
        ArcChallenge,
        ArcEasy,
        BoolQ,
        CommonsenseMixture,
        CommonsenseQA,
        Gsm8k,
        HellaSwag,
        JsonlInstruction,
        JsonlMultipleChoice,
        Mmlu,
        OpenBookQA,
        Piqa,
        RaceHigh,
        RaceMiddle,
        Siqa,
        WinoGrande,
    )
    from flexora.data.bilevel import BilevelDataModule
    from flexora.data.datamodule import AnswerDataModule
    from flexora.data.generative import GenerativeDataModule
    from flexora.data.multiple_choice import MultipleChoiceDataModule
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
    "AnswerDataModule": "flexora.data.datamodule",
    "ArcChallenge": "flexora.data.benchmarks",
    "ArcEasy": "flexora.data.benchmarks",
    "Backbone": "flexora.backbone.loading",
    "BilevelDataModule": "flexora.data.bilevel",
    "BoolQ": "flexora.data.benchmarks",
    "Budget": "flexora.search.rules",
    "CommonsenseMixture": "flexora.data.benchmarks",
    "CommonsenseQA": "flexora.data.benchmarks",
    "FinetuneModule": "flexora.finetune.module",
    "FirstOrder": "flexora.search.estimators",
    "FlexoraError": "flexora.errors",
    "FullWeights": "flexora.backbone.methods",
    "GenerativeDataModule": "flexora.data.generative",
    "Gsm8k": "flexora.data.benchmarks",
    "HellaSwag": "flexora.data.benchmarks",
    "JsonlInstruction": "flexora.data.benchmarks",
    "JsonlMultipleChoice": "flexora.data.benchmarks",
    "Mmlu": "flexora.data.benchmarks",
    "MultipleChoiceDataModule": "flexora.data.multiple_choice",
    "OpenBookQA": "flexora.data.benchmarks",
    "Piqa": "flexora.data.benchmarks",
    "Positive": "flexora.search.rules",
    "RaceHigh": "flexora.data.benchmarks",
    "RaceMiddle": "flexora.data.benchmarks",
    "SGD": "flexora.search.inner",
    "ScoreModule": "flexora.scoring.module",
    "SearchModule": "flexora.search.module",
    "Selection": "flexora.search.selection",
    "Siqa": "flexora.data.benchmarks",
    "Threshold": "flexora.search.rules",
    "TopK": "flexora.search.rules",
    "Unrolled": "flexora.search.estimators",
    "WinoGrande": "flexora.data.benchmarks",
}

__all__ = [
    "SGD",
    "AdamW",
    "AnswerDataModule",
    "ArcChallenge",
    "ArcEasy",
    "Backbone",
    "BilevelDataModule",
    "BoolQ",
    "Budget",
    "CommonsenseMixture",
    "CommonsenseQA",
    "FinetuneModule",
    "FirstOrder",
    "FlexoraError",
    "FullWeights",
    "GenerativeDataModule",
    "Gsm8k",
    "HellaSwag",
    "JsonlInstruction",
    "JsonlMultipleChoice",
    "Mmlu",
    "MultipleChoiceDataModule",
    "OpenBookQA",
    "Piqa",
    "Positive",
    "RaceHigh",
    "RaceMiddle",
    "ScoreModule",
    "SearchModule",
    "Selection",
    "Siqa",
    "Threshold",
    "TopK",
    "Unrolled",
    "WinoGrande",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module: importing flexora itself stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'flexora' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
