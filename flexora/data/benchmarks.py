"""Every benchmark by its name, for recipes and for the tests that go through all of them."""

from __future__ import annotations

from flexora.data.arc import ArcChallenge, ArcEasy
from flexora.data.boolq import BoolQ
from flexora.data.commonsense_qa import CommonsenseQA
from flexora.data.gsm8k import Gsm8k
from flexora.data.hellaswag import HellaSwag
from flexora.data.mixture import CommonsenseMixture
from flexora.data.mmlu import Mmlu
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.openbookqa import OpenBookQA
from flexora.data.own import JsonlInstruction, JsonlMultipleChoice
from flexora.data.piqa import Piqa
from flexora.data.race import RaceHigh, RaceMiddle
from flexora.data.siqa import Siqa
from flexora.data.winogrande import WinoGrande

MULTIPLE_CHOICE: tuple[type[MultipleChoiceDataModule], ...] = (
    ArcChallenge,
    ArcEasy,
    BoolQ,
    CommonsenseQA,
    HellaSwag,
    Mmlu,
    OpenBookQA,
    Piqa,
    RaceHigh,
    RaceMiddle,
    Siqa,
    WinoGrande,
)

__all__ = [
    "MULTIPLE_CHOICE",
    "ArcChallenge",
    "ArcEasy",
    "BoolQ",
    "CommonsenseMixture",
    "CommonsenseQA",
    "Gsm8k",
    "HellaSwag",
    "JsonlInstruction",
    "JsonlMultipleChoice",
    "Mmlu",
    "OpenBookQA",
    "Piqa",
    "RaceHigh",
    "RaceMiddle",
    "Siqa",
    "WinoGrande",
]
