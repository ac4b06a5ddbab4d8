"""Index of published adapters: what they are of, how good they are, where they lie and what their weights hash to."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import Field, PositiveInt, field_validator

from flexora.errors import FlexoraError
from flexora.files import sha256_of
from flexora.places import inside
from flexora.scoring.results import Estimate, Metric, Results
from flexora.search.selection import Selection
from flexora.zoo.entries import PREFIX, Entry, entry_file, read_entry, zoo_root

#: Name of the weights in a PEFT folder.
WEIGHTS = "adapter_model.safetensors"


class Base(Entry):
    """The base model that an adapter was trained and measured on.

    Attributes:
        id: Its name on the hub.
        revision: Commit on the hub; none where none was seen.
        weights: What its weights were, with their hash in brackets, where they were not the hub's own.
    """

    id: str
    revision: str | None = None
    weights: str | None = None

    @property
    def measured(self) -> str:
        """What figures are of, without the hash."""
        return (self.weights or self.id).partition(" (")[0]


class Score(Entry):
    """What an arm reached: its size, each metric with its standard error over the rows, the loss in nats a token."""

    arm: str
    layers: int
    parameters: int
    metrics: dict[Metric, Estimate]
    loss: float


class AdapterRecord(Entry):
    """An adapter of the index.

    Attributes:
        recipe: The recipe that made it.
        base: The base model.
        layers: The adapted decoder layers.
        benchmark: The benchmark that it was trained for and measured on.
        split: The split that was measured.
        rows: Number of rows measured, of ``split_rows``.
        split_rows: Number of rows of the split.
        seed: Seed of search and fine-tune.
        scores: Base model, plain LoRA and the adapter on the same rows.
        sha256: Hash of its weights.
        location: A folder beside the index, or ``hf:user/repo@revision``.
    """

    recipe: str
    base: Base
    layers: list[int]
    benchmark: str
    split: str
    rows: PositiveInt
    split_rows: PositiveInt
    seed: int
    scores: list[Score]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    location: str

    @field_validator("location")
    @classmethod
    def _stays_in_the_zoo(cls, location: str) -> str:
        if not location.startswith("hf:") and not re.fullmatch(r"[\w.-]+", location.replace("..", "/")):
            raise ValueError("must be the name of a folder beside the index, or hf:user/repo@revision")
        return location


def adapter_record(name: str) -> AdapterRecord:
    """The record of an adapter by its name in the zoo.

    Raises:
        FlexoraError: If the zoo has none of that name, or its record is broken.
    """
    return read_entry(AdapterRecord, entry_file("adapters", name))


def record_of(folder: Path, recipe: str, location: str) -> AdapterRecord:
    """The record of a published folder, from what is in it.

    Args:
        folder: What ``flexora publish`` wrote.
        recipe: The recipe that made it.
        location: Where it will lie.

    Raises:
        FlexoraError: If the folder is no published one, or of several benchmarks.
    """
    try:
        seed = yaml.safe_load((folder / "config.yaml").read_text())["seed"]
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise FlexoraError(f"{folder} has no config.yaml that can be read; name what flexora publish wrote") from error
    results, selection = Results.read(folder / "results.json"), Selection.read(folder / "selection.json")
    base = selection.base.model
    if base is None or results.parts:
        raise FlexoraError(f"{folder} names no base model, or several benchmarks; the zoo lists adapters for one")
    return AdapterRecord(
        recipe=recipe,
        base=Base(id=base, revision=selection.base.revision, weights=None if results.model == base else results.model),
        layers=selection.layers,
        benchmark=results.benchmark,
        split=results.split,
        rows=results.rows,
        split_rows=results.split_rows,
        seed=seed,
        scores=[
            Score(
                arm=arm.name,
                layers=arm.adapted_layers,
                parameters=arm.trainable_parameters,
                metrics=arm.metrics,
                loss=arm.loss,
            )
            for arm in results.arms
        ],
        sha256=sha256_of(folder / WEIGHTS),
        location=location,
    )


def require_recorded(record: AdapterRecord, folder: Path, reference: str) -> Path:
    """Return the folder if its weights are the recorded ones.

    Raises:
        FlexoraError: If there are none, or others.
    """
    file = folder / WEIGHTS
    if not file.is_file() or sha256_of(file) != record.sha256:
        remedy = "install flexora anew" if record.location == folder.name else "tell its authors"
        raise FlexoraError(f"{reference}: {file} is missing or not the adapter of the record (sha256); {remedy}")
    return folder


def zoo_adapter(reference: str) -> tuple[AdapterRecord, str]:
    """The record that ``zoo:NAME`` names, and where its adapter lies: a folder's path, or an ``hf:`` reference.

    Raises:
        FlexoraError: If the zoo has none of that name.
    """
    record = adapter_record(reference.removeprefix(PREFIX))
    if record.location.startswith("hf:"):
        return record, record.location
    return record, str(inside(zoo_root(), f"adapters/{record.location}", reference))
