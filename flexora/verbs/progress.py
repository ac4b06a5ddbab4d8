"""Progress bars: Rich's in a terminal, plain ones in a log file, where Rich would stay silent until the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

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


@contextmanager
def bytes_bar(does: str, size: int) -> Iterator[Callable[[int], None]]:
    """Give what is to be told of every so many bytes; shows their share of ``size``, the speed and the time left."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(does), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(does, total=size)
        yield lambda more: bar.advance(task, more)
