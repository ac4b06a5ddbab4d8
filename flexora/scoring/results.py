"""``results.json``: accuracies of one evaluation, arm by arm, with standard errors and paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from flexora.errors import FlexoraError
from flexora.files import write_atomically

Metric = Literal["acc", "acc_norm"]


class Estimate(BaseModel):
    """A mean and its standard error, both as shares (0.5 is 50 %)."""

    model_config = ConfigDict(allow_inf_nan=False)
    value: float
    stderr: float


class ArmResult(BaseModel):
    """The figures of one arm.

    Attributes:
        name: ``base``, ``lora``, ``flexora`` or the adapter's path.
        adapted_layers: Number of decoder layers with an adapter.
        trainable_parameters: Parameters of the adapter.
        metrics: ``acc`` and ``acc_norm`` with standard errors over rows.
        loss: Mean negative log-likelihood per answer token, in nats.
        over_base: Paired difference of each metric to the base model on the same rows; none for the base itself.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    name: str
    adapted_layers: int
    trainable_parameters: int
    metrics: dict[Metric, Estimate]
    loss: float
    over_base: dict[Metric, Estimate] | None = None


class Results(BaseModel):
    """One evaluation: which rows, which model, and the arms in the order they are shown."""

    format_version: Literal[1] = 1
    benchmark: str
    split: str
    rows: PositiveInt
    split_rows: PositiveInt
    model: str
    precision: str
    primary_metric: Metric
    arms: list[ArmResult]

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
