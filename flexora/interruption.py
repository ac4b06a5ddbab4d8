"""SIGTERM, Ctrl-C, SLURM's requeue: they leave a note; the work ends at the next place where all processes look at it.

A handler that saved by itself would come in the middle of a step, and Lightning's looks between batches alone: an outer
step of the search is one, and may take minutes.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed

from flexora.errors import FlexoraError, Interrupted
from flexora.impatience import second_ctrl_c_ends
from flexora.requeue import Job, take_over

#: The signal that asked this process to stop, or 0.
_asked = 0
#: Signals that whoever started this process wants it to ignore.
_ignored: set[int] = set()
#: The job that SLURM's signal puts back into the queue.
_job: Job | None = None
#: Lightning's, of the processes that it started beside this one.
_launcher: Any = None

#: More than any signal's number.
_FIRST = 128


def heed(world_size: int = 1, device: torch.device | None = None) -> None:
    """Stop here if a signal asked any of the processes to.

    Args:
        world_size: Number of processes, all of which must come by as often.
        device: Where their collectives work; of no matter for one process.

    Raises:
        Interrupted: In all of them.
    """
    number = _asked
    if world_size > 1:
        joint = torch.tensor(number + _FIRST * _is_requeue(number), device=device)  # of several, a requeue is heeded
        distributed.all_reduce(joint, distributed.ReduceOp.MAX)
        number = int(joint) % _FIRST
    if number:
        raise Interrupted(128 + number)


class StopOnSignal(Callback):
    """Heeds signals before each batch of any loop; the search's gradients do so by themselves, for each micro-batch.

    It comes after the callback that saves, which must know a step before it is broken off.
    """

    def on_train_start(self, *args: Any, **kwargs: Any) -> None:
        """Take the signals over; Lightning has just put its own handlers in their place."""
        for number in (signal.SIGTERM, signal.SIGINT, *_requeue_signal()):
            signal.signal(number, signal.SIG_IGN if number in _ignored else _note)

    on_validation_start = on_test_start = on_predict_start = on_train_start

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop between two batches."""
        heed(trainer.world_size, trainer.strategy.root_device)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start
    on_train_end = on_test_end = on_predict_end = on_train_batch_start  # a signal in the last batch

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the job back into the queue, before any process leaves: with the first one SLURM may end all.

        What ends all processes must not end this one sooner: when the first of the others has left, a thread of
        Lightning's would kill it before it has said its line.
        """
        if isinstance(exception, Interrupted | FlexoraError) and _launcher is not None:
            getattr(_launcher, "procs", []).clear()
        if isinstance(exception, Interrupted) and _requeued(exception):
            trainer.strategy.barrier()


def follow(trainer: L.Trainer) -> None:
    """Take SLURM's requeue signal over from a trainer, before it starts, and know its processes.

    Raises:
        FlexoraError: If there is a checkpoint that Lightning would load by itself.
    """
    global _job, _launcher
    _job, _launcher = take_over(trainer), trainer.strategy.launcher
    for number in _requeue_signal():
        signal.signal(number, _note)  # whenever it comes, all processes get to the same place with it


@contextmanager
def leaving(verb: str) -> Iterator[None]:
    """Have SIGTERM and Ctrl-C raise where they come, until :class:`StopOnSignal` takes them over.

    Args:
        verb: What they interrupt.

    Raises:
        Interrupted: On SIGTERM, where nothing was begun that could be saved; on a signal that nobody has heeded.
    """
    global _asked  # noqa: PLW0603 - a process has its signals once
    _asked = _asked if _is_requeue(_asked) else 0  # that one may have come while rows were read
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    _ignored.clear()
    _ignored.update(number for number, handler in old.items() if handler == signal.SIG_IGN)  # as a shell's & has it
    if signal.SIGTERM not in _ignored:
        signal.signal(signal.SIGTERM, _leave)
    try:
        with second_ctrl_c_ends(verb, _kill_others):
            yield
        heed()
    except Interrupted as stop:
        _requeued(stop)
        raise
    finally:
        _asked = 0
        for number, handler in old.items():  # Lightning ignores Ctrl-C from the first one on
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    global _asked  # noqa: PLW0603 - handlers have no other place for it
    if not _is_requeue(_asked):  # SIGTERM may follow it
        _asked = number


def _requeue_signal() -> tuple[signal.Signals, ...]:
    return () if _job is None else (_job.number,)


def _is_requeue(number: int) -> bool:
    return number in _requeue_signal()


def _requeued(stop: Interrupted) -> bool:
    """Whether it was the requeue signal; then the job is put back into the queue."""
    if _job is None or not _is_requeue(stop.status - 128):
        return False
    _job.requeue()
    return True


def _kill_others() -> None:
    if _launcher is not None:
        _launcher.kill(signal.SIGKILL)


def _leave(number: int, frame: FrameType | None) -> None:
    _kill_others()  # they would go on alone
    raise Interrupted(128 + number)
