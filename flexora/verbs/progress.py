"""Progress bars: Rich's in a terminal, plain ones in a log file, where Rich would stay silent until the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from rich.console import Console

if TYPE_CHECKING:
    import lightning as L


class _LossesAlone(ProgressBar):
    """Lightning's bars without the logger's version, which says nothing here."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class _TerminalBar(_LossesAlone, RichProgressBar):
    pass


class _LogFileBar(_LossesAlone, TQDMProgressBar):
    pass


def progress_bar() -> ProgressBar:
    """The bar that fits where the output goes; it shows losses, steps and the time left."""
    return _TerminalBar(leave=True) if Console().is_terminal else _LogFileBar()
