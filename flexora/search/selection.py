"""``selection.json``: the hand-over from the search to the fine-tune, validated whenever it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from flexora.errors import FlexoraError, shown
from flexora.files import write_atomically
from flexora.places import own_path
from flexora.search.units import Unit, Units, flatten

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


#: A value for each layer, ``[n]``, or for each projection of each layer, ``[n][m]``.
Values = list[float] | list[list[float]]
Targets = dict[int, list[str]]


class _Part(BaseModel):
    """Shared settings: finite numbers only. Unknown keys pass, so that newer files stay readable."""

    model_config = ConfigDict(allow_inf_nan=False)


class SelectionBase(_Part):
    """The model a selection was made for."""

    architecture: str
    num_layers: PositiveInt
    model: str | None = None
    revision: str | None = None


class SelectionData(_Part):
    """The rows a selection was made with."""

    name: str
    fingerprint: str
    train_rows: int
    validation_rows: int


class Repeats(_Part):
    """What searches with other seeds and other held-out rows chose.

    Attributes:
        choices: What each of them would have chosen by itself.
        mean_jaccard: Mean over all pairs of |intersection| / |union|.
        random_jaccard: What that is on average for random choices of the same sizes.
    """

    choices: list[Targets] = Field(min_length=2)
    mean_jaccard: Fraction
    random_jaccard: Fraction


class Stability(_Part):
    """How sure the choice is.

    Attributes:
        last_steps: Outer steps at the end, of each repeat, that are looked at.
        frequency: Share of them in which the rule would choose each unit; like alpha.
        repeats: What the repeats chose, if there are several.
    """

    last_steps: PositiveInt
    frequency: list[Fraction] | list[list[Fraction]]
    repeats: Repeats | None = None


class Selection(_Part):
    """Which layers get an adapter, and on which projections.

    Attributes:
        format_version: Version of this file format.
        base: Architecture and layer count that the indices refer to.
        layers: Chosen decoder layers, 0-based, sorted, never empty.
        targets: For each chosen layer the projections to adapt.
        projections: The projections with a gate of their own, in the order of alpha's columns; none where a layer has
            one gate.
        alpha: Hyperparameters, averaged over the last outer steps, one per layer, or one per layer and projection.
        gates: ``n * softmax(alpha)``, like alpha.
        rule: The selection rule and its parameters.
        stability: Frequencies over the last outer steps, and agreement of repeats.
        search: The settings of the search.
        data: Name, fingerprint and row counts of the search's data.
        seed: The seed of the search.
        versions: Library versions the search ran with.
        source: Where the choice was taken from, in a fine-tune that did not search.
    """

    format_version: Literal[1] = 1
    base: SelectionBase
    layers: list[int] = Field(min_length=1)
    targets: Targets
    projections: list[str] | None = Field(default=None, min_length=1)
    alpha: Values | None = None
    gates: Values | None = None
    rule: dict[str, Any] | None = None
    stability: Stability | None = None
    search: dict[str, Any] | None = None
    data: SelectionData | None = None
    seed: int | None = None
    versions: dict[str, str] | None = None
    source: str | None = None

    @field_validator("layers")
    @classmethod
    def _sorted_and_distinct(cls, layers: list[int]) -> list[int]:
        if layers != sorted(set(layers)):
            raise ValueError("must be sorted and free of repeats")
        return layers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        n = self.base.num_layers
        outside = [layer for layer in self.layers if not 0 <= layer < n]
        if outside:
            raise ValueError(f"layer {outside[0]} is out of range: {self.base.architecture} has layers 0 to {n - 1}")
        if sorted(self.targets) != self.layers:
            raise ValueError("targets must have exactly the chosen layers as keys")
        for layer, projections in self.targets.items():
            if not projections:
                raise ValueError(f"targets[{layer}] names no projection")
        if self.projections is not None:
            unknown = {name for names in self.targets.values() for name in names} - set(self.projections)
            if unknown or len(set(self.projections)) < len(self.projections):
                raise ValueError(f"projections {self.projections} must be distinct and hold every target")
        per_unit = {"alpha": self.alpha, "gates": self.gates}
        if self.stability is not None:
            per_unit["stability.frequency"] = self.stability.frequency
        for name, values in per_unit.items():
            if values is not None and len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries for {n} layers")
            if values is not None and self.units.fold(flatten(values)) != values:
                columns = f"for {len(self.projections)} projections" if self.projections else "for a layer"
                raise ValueError(f"{name} has another number of values {columns} than projections says")
        return self

    @property
    def num_layers(self) -> int:
        """Number of decoder layers of the base model."""
        return self.base.num_layers

    @property
    def units(self) -> Units:
        """What alpha has an entry for."""
        return Units(self.base.num_layers, tuple(self.projections) if self.projections else None)

    def has_chosen(self, unit: Unit) -> bool:
        """Whether a layer, or a projection of one, gets an adapter."""
        if unit.projection is None:
            return unit.layer in self.layers
        return unit.projection in self.targets.get(unit.layer, [])

    def write(self, path: Path | str) -> Path:
        """Write the selection atomically as JSON and return its path."""
        return write_atomically(Path(path), self.model_dump_json(indent=2, exclude_none=True) + "\n")

    @classmethod
    def read(cls, path: Path | str) -> Selection:
        """Read and validate a selection file.

        Raises:
            FlexoraError: If the file is missing, not JSON, or inconsistent; one line that names the first problem.
        """
        try:
            text = own_path(path, "selection").read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise FlexoraError(
                f"cannot read the selection {path}: {error}; name a selection.json that exists"
            ) from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            # Of a union pydantic names the type it tried, too.
            where = ".".join(str(part) for part in first["loc"] if "[" not in str(part)) or "the file"
            what = first["msg"].removeprefix("Value error, ")
            raise FlexoraError(
                f"{path} is not a valid selection: {shown(f'{where}: {what}')}; search again or mend it"
            ) from error

    def require(self, architecture: str, num_layers: int, source: str) -> Selection:
        """Return the selection itself if it fits the model.

        Raises:
            FlexoraError: If it was made for another architecture or another number of layers.
        """
        if (self.base.architecture, self.base.num_layers) != (architecture, num_layers):
            raise FlexoraError(
                f"{source} was made for {self.base.architecture} with {self.base.num_layers} layers, but the backbone "
                f"is {architecture} with {num_layers}; search on this backbone or change backbone.model"
            )
        return self
