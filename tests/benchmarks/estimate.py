"""Estimated peak memory beside the measured one: the packaged 135M model on the CPU, each phase a process of its own.

``python -m tests.benchmarks.estimate`` after ``flexora fetch demo``. Measured is how far the process's resident memory
rose above what it was before the model was loaded, over steps that Lightning's Trainer makes (not while the weights are
read). With nf4 that includes pages of the checkpoint, which stay mapped until somebody needs the room. glibc is told to
give memory back (``MALLOC_MMAP_THRESHOLD_``): by itself it keeps holes between tensors, which ``--holes`` measures too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from flexora import Backbone, FinetuneModule, SearchModule, Unrolled
from flexora.data.batch import Batch
from flexora.data.bilevel import OuterBatch
from flexora.estimate.batches import assumed_batch
from flexora.estimate.rehearsal import Memory, rehearse_evaluation, rehearse_finetune, rehearse_search
from flexora.estimate.sketch import Sketch
from flexora.scoring.module import ScoreModule


@dataclass(frozen=True)
class Case:
    phase: Literal["finetune", "search", "evaluate"]
    rows: int
    length: int
    backbone: dict[str, Any]
    precision: str = "32-true"

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.backbone.items())
        return f"{self.phase}, {self.rows} x {self.length}, {self.precision}{', ' if settings else ''}{settings}"

    @property
    def batch(self) -> Batch:
        return assumed_batch(self.rows, self.length, choices=self.phase == "evaluate")

    def outer(self, number: int) -> OuterBatch:
        return OuterBatch(outer_step=number, train=[[self.batch]] * 2, validation=[self.batch])


CHECKPOINTING = {"gradient_checkpointing": True}
CASES = [
    Case("finetune", 8, 128, {}),
    Case("finetune", 4, 384, {}),
    Case("finetune", 8, 128, CHECKPOINTING),
    Case("finetune", 4, 384, CHECKPOINTING),
    Case("finetune", 4, 96, {"dtype": "bfloat16"}, "bf16-mixed"),
    Case("finetune", 4, 96, {"quantization": "nf4"}),
    Case("search", 4, 96, {}),
    Case("search", 4, 96, CHECKPOINTING),
    Case("evaluate", 8, 256, {}),
    Case("evaluate", 2, 1024, {}),
]


def estimate(case: Case) -> Memory:
    """What flexora says before anything is loaded."""
    backbone, adapter = Sketch(**case.backbone), LoraConfig(r=8, lora_alpha=16)
    if case.phase == "search":
        return rehearse_search(
            SearchModule(backbone, adapter, inner_steps=2, estimator=Unrolled()), case.outer(0), case.precision
        )
    rehearse = rehearse_finetune if case.phase == "finetune" else rehearse_evaluation
    return rehearse(FinetuneModule(backbone, adapter), case.batch, case.precision)


def resident(name: str) -> int:
    """``VmRSS`` or its highest value so far, ``VmHWM``, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:"))


def run(case: Case) -> int:
    """Highest resident memory over two or three steps of a Trainer, above that from before the model was loaded."""
    backbone, adapter = Backbone(**case.backbone), LoraConfig(r=8, lora_alpha=16)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    quiet |= {"enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, precision=case.precision, **quiet)
    batches = [case.outer(number) for number in range(2)] if case.phase == "search" else [case.batch] * 3
    loader = DataLoader(batches, batch_size=None)
    modules = {
        "search": SearchModule(backbone, adapter, outer_steps=2, inner_steps=2, estimator=Unrolled()),
        "finetune": FinetuneModule(backbone, adapter),
        "evaluate": ScoreModule(backbone),
    }
    module, before = modules[case.phase], resident("VmRSS")
    module.configure_model()
    Path("/proc/self/clear_refs").write_text("5")  # the highest value starts anew
    if case.phase == "evaluate":
        trainer.test(module, loader, verbose=False)
    else:
        trainer.fit(module, loader)
    return resident("VmHWM") - before


def measure(number: int, *, holes: bool) -> int:
    """:func:`run` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.estimate", f"--only={number}"]
    own = os.environ if holes else os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True, env=own)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    """Print both for every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--holes", action="store_true", help="measure with glibc's own settings as well")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.only is not None:
        print(run(CASES[options.only]))
        return
    table = Table("case", "estimated, MB", "measured, MB", "estimated / measured", "with holes, MB")
    for number, case in enumerate(CASES):
        estimated, measured = estimate(case).peak, measure(number, holes=False)
        holes = f"{measure(number, holes=True) / 1e6:,.0f}" if options.holes else ""
        ratio = f"{estimated / measured:.3f}"
        table.add_row(str(case), f"{estimated / 1e6:,.0f}", f"{measured / 1e6:,.0f}", ratio, holes)
        print(f"{case}: estimated {estimated / 1e6:,.0f}, measured {measured / 1e6:,.0f} MB {holes}", flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
