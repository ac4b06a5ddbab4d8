"""``results.json``: accuracies of one evaluation, arm by arm, with standard errors and paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from flexora.errors import FlexoraError
from flexora.files import write_atomically

#: ``acc`` and ``acc_norm``: the right choice is the likeliest, by its sum or per character. ``exact_match`` and
#: ``flexible_match``: the generated answer is right, in the form asked for or anywhere. ``loss``: nats per answer
#: token, the lower the better. ``average``: the mean of several benchmarks' primary metrics.
Metric = Literal["acc", "acc_norm", "exact_match", "flexible_match", "loss", "average"]


class Estimate(BaseModel):
    """A mean and its standard error, both as shares (0.5 is 50 %)."""

    model_config = ConfigDict(allow_inf_nan=False)
    value: float
    stderr: float


class Comparison(BaseModel):
    """How far a referee's scores of the same rows are from ours.

    Attributes:
        referee: Who it is, with its version.
        rows: Number of rows.
        largest: Largest difference of a summed log-likelihood, in nats.
        other_predictions: Rows with another likeliest choice.
        near_ties: Those among them whose two likeliest choices the referee has within 0.002 nats.
        accuracy: Our share of right answers (``acc``).
        referee_accuracy: The referee's.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    referee: str
    rows: PositiveInt
    largest: float
    other_predictions: int
    near_ties: int
    accuracy: float
    referee_accuracy: float


class ArmResult(BaseModel):
    """The figures of one arm.

    Attributes:
        name: ``base``, ``lora``, ``flexora`` or the adapter's path.
        adapted_layers: Number of decoder layers with an adapter.
        trainable_parameters: Parameters of the adapter.
        metrics: The benchmark's metrics with standard errors over rows.
        loss: Mean negative log-likelihood per answer token, in nats.
        calibration_error: Expected calibration error of the predicted choice, where there are choices.
        referee: How far a referee's scores are, where one was asked.
        over_base: Paired difference of each metric to the base model on the same rows; none for the base itself.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    name: str
    adapted_layers: int
    trainable_parameters: int
    metrics: dict[Metric, Estimate]
    loss: float
    calibration_error: float | None = None
    referee: Comparison | None = None
    over_base: dict[Metric, Estimate] | None = None


class Results(BaseModel):
    """One evaluation: which rows, which model, and the arms in the order they are shown.

    A mixture's figures are averages, and its ``parts`` the results of its benchmarks.
    """

    format_version: Literal[1] = 1
    benchmark: str
    split: str
    rows: PositiveInt
    split_rows: PositiveInt
    model: str
    precision: str
    primary_metric: Metric
    arms: list[ArmResult]
    parts: list[Results] = Field(default_factory=list)

    @property
    def development(self) -> bool:
        """Whether development rows were scored, in the place of a reported split."""
        return "development" in {self.split, *(part.split for part in self.parts)}

    def write(self, path: Path) -> Path:
        """Write the results atomically as JSON and return ``path``."""
        return write_atomically(path, self.model_dump_json(indent=2, exclude_none=True) + "\n")

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read and validate a results file.

        Raises:
            FlexoraError: If the file is missing or malformed.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValueError, ValidationError) as error:
            raise FlexoraError(f"cannot read {path}: {str(error).splitlines()[0]}; evaluate again") from error
