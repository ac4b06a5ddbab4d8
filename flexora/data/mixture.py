"""Several benchmarks as one: trained on all of them, reported one by one and as their mean."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

from datasets import Dataset, concatenate_datasets

from flexora.data.arc import ArcChallenge, ArcEasy
from flexora.data.batching import permutation
from flexora.data.boolq import BoolQ
from flexora.data.datamodule import AnswerDataModule
from flexora.data.hellaswag import HellaSwag
from flexora.data.hygiene import without_reported
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.data.openbookqa import OpenBookQA
from flexora.data.piqa import Piqa
from flexora.data.prompts import PromptStyle
from flexora.data.reading import Reader
from flexora.data.siqa import Siqa
from flexora.data.sources import HUB_PREFIX, Source
from flexora.data.winogrande import WinoGrande
from flexora.errors import FlexoraError


class CommonsenseMixture(AnswerDataModule):
    """The eight commonsense sets that the literature trains on together (Hu et al. 2023, LLM-Adapters).

    Train rows that occur in the reported split of any of them are left out. A folder as ``source`` has a folder for
    each benchmark.

    Args:
        weights: Shares of the benchmarks among the training rows, such as ``{BoolQ: 1, Piqa: 2}``; others get none. By
            default every benchmark gives all its rows. Weights need ``train_rows``.
        prompt_style: One style for all; by default what lm-evaluation-harness does with each.
        options: Settings of :class:`AnswerDataModule`; ``evaluate_rows`` counts for each benchmark.
    """

    members: ClassVar[tuple[type[MultipleChoiceDataModule], ...]] = (
        BoolQ,
        Piqa,
        Siqa,
        HellaSwag,
        WinoGrande,
        ArcEasy,
        ArcChallenge,
        OpenBookQA,
    )
    benchmark = Source(hub=None, fields=())
    primary_metric = "average"
    metrics = ("average",)
    referee_style: ClassVar[PromptStyle] = "completion"  # that of every member

    def __init__(
        self,
        *args: Any,
        weights: dict[str, float] | None = None,
        prompt_style: PromptStyle | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        names = [member.__name__ for member in self.members]
        for name, weight in (weights or {}).items():
            if name not in names or not 0 <= weight < math.inf:
                raise FlexoraError(f"data.weights: {name}: {weight} is no weight of one of {', '.join(names)}")
        if weights is not None and (self.train_rows is None or not sum(weights.values()) > 0):
            raise FlexoraError("data.weights: shares of what? give data.train_rows too, and a weight above 0")
        self.weights = weights
        self.prompt_style = prompt_style

    @cached_property
    def parts(self) -> list[MultipleChoiceDataModule]:
        """The benchmarks."""
        shared = {
            name: getattr(self, name)
            for name in ("evaluate_tokens", "evaluate_rows", "development_rows", "max_length", "chat_template")
        }
        shared |= {"num_fewshot": self.num_fewshot, "bad_rows": self.bad_rows}
        return [
            member(
                self.backbone,
                source=f"{self.source}/{member.__name__}" if self._is_local else self.source,
                prompt_style=self.prompt_style,
                split_seed=self.split_seed,
                **shared,
            )
            for member in self.members
        ]

    @property
    def unit(self) -> str:
        """What messages count: lines, where all benchmarks come as JSON lines, or rows."""
        return "line" if all(part.unit == "line" for part in self.parts) else "row"

    def reader(self) -> Reader:
        """There is none.

        Raises:
            FlexoraError: Always: every benchmark reads its own rows.
        """
        raise FlexoraError("data: every benchmark of a mixture reads its own rows; ask one of its parts")

    def check_source(self) -> None:
        """Find out without loading a row whether local sources can be read.

        Raises:
            FlexoraError: If one cannot, or a single dataset of the hub is to stand for all.
        """
        if self.source.startswith(HUB_PREFIX):
            raise FlexoraError("data.source: one dataset is no mixture; name hub, packaged, or a folder of folders")
        for part in self.parts:
            part.check_source()

    def prepare_data(self) -> None:
        """Fill the caches once per machine."""
        self.check_source()
        for part in self.parts:
            part.trainer = self.trainer
            part.prepare_data()

    @cached_property
    def train_split(self) -> Dataset:
        """The train rows of all benchmarks, or those that the weights take of each."""
        reported = {part: part.reported_split_rows for part in self.parts if part.has_reported_rows()}
        rows = []
        for part in self.parts:
            others = {
                f"the {other.reported_split} split of {other.benchmark_name}": found
                for other, found in reported.items()
                if other is not part
            }
            if self.development_rows is not None:
                others |= {
                    f"the development rows of {other.benchmark_name}": other.development_set
                    for other in self.parts
                    if other is not part
                }
            rows.append(without_reported(part.train_split, others, part.benchmark_name, part.unit))
        if self.weights is None:
            return concatenate_datasets(rows)
        return concatenate_datasets([self._share(part, own) for part, own in zip(self.parts, rows, strict=True)])

    def _share(self, part: MultipleChoiceDataModule, rows: Dataset) -> Dataset:
        assert self.weights is not None
        share = self.weights.get(part.benchmark_name, 0.0) / sum(self.weights.values())
        # One more of each: shares rarely are whole numbers, and the sum must not fall short.
        wanted = int(share * (self.validation_rows + (self.train_rows or 0))) + (share > 0)
        if wanted > len(rows):
            raise FlexoraError(
                f"data.weights: {part.benchmark_name} has {len(rows)} train rows, but its share of train_rows and "
                f"validation_rows is {wanted}; lower its weight or the rows"
            )
        return rows.select(sorted(permutation(len(rows), self.train_seed, 0)[:wanted]))
