"""The course of a fine-tune: ``history.csv``, one row for each epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

from flexora.agreement import written_by_first
from flexora.files import write_atomically

if TYPE_CHECKING:
    import lightning as L

COLUMNS = ("epoch", "train_loss", "val_loss")


class EpochHistory(Callback):
    """Writes each epoch's losses, in nats per answer token (or question), to ``history.csv``.

    ``train_loss`` is the mean over the epoch's steps, while the adapter moves and with dropout; ``val_loss`` is that of
    the held-out rows at its end.

    Args:
        folder: The phase's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "history.csv"
        self._rows: dict[int, dict[str, float]] = {}
        self._val_loss: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the rows that are there, where training goes on: a checkpoint lies before its epoch's end."""
        self._rows = {} if trainer.ckpt_path is None else {int(row["epoch"]): row for row in read_history(self.file)}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch's last validation loss: Lightning goes on showing it in epochs that have none."""
        self._val_loss = None if trainer.sanity_checking else _metric(trainer, "val_loss")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's row."""
        losses = {"train_loss": _metric(trainer, "train_loss_of_epoch"), "val_loss": self._val_loss}
        self._val_loss = None
        row = {"epoch": float(trainer.current_epoch + 1)} | {k: v for k, v in losses.items() if v is not None}
        self._rows[trainer.current_epoch + 1] = row
        written_by_first(trainer, self._write)

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "epoch": epoch} for epoch, row in sorted(self._rows.items()))
        write_atomically(self.file, text.getvalue())


def _metric(trainer: L.Trainer, name: str) -> float | None:
    return float(trainer.callback_metrics[name]) if name in trainer.callback_metrics else None


def read_history(file: Path) -> list[dict[str, float]]:
    """The rows of a ``history.csv``, by column; none where there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
