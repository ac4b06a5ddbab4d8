"""SLURM's requeue signal: the job is put back into the queue once its state is saved.

Lightning would save from its own handler, which comes anywhere in a step and on each process elsewhere, and would load
that file by itself into whatever loop starts next.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from flexora.errors import FlexoraError


@dataclass
class Job:
    """The job of SLURM that this process belongs to.

    Attributes:
        number: The signal that asks for a requeue.
        is_first: Whether this is the process that speaks to SLURM.
    """

    number: signal.Signals
    is_first: bool

    def requeue(self) -> None:
        """Have SLURM start the job again, once; where that fails the user is told."""
        first, self.is_first = self.is_first, False
        if not first:
            return
        array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID", "")
        name = job if array is None else f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
        try:
            done = subprocess.run(["scontrol", "requeue", name], check=False)
            problem = f"status {done.returncode}" if done.returncode else None
        except OSError as error:
            problem = error.strerror
        if problem:
            print(f"SLURM: scontrol requeue {name} failed ({problem}); submit the job again", file=sys.stderr)


def take_over(trainer: L.Trainer) -> Job | None:
    """Take the requeue signal from Lightning.

    Args:
        trainer: The trainer, before it starts.

    Returns:
        The job; none without SLURM, or where its environment is not to requeue.

    Raises:
        FlexoraError: If there is a checkpoint that Lightning would load by itself.
    """
    if SLURMEnvironment.detect():
        for file in sorted(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")):
            raise FlexoraError(f"{file}: Lightning saved it in the middle of a step, and would load it; delete it")
    environment = trainer._accelerator_connector.cluster_environment
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    environment.auto_requeue = False
    assert environment.requeue_signal is not None  # Lightning's default
    return Job(environment.requeue_signal, environment.global_rank() == 0)
