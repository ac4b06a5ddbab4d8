"""Several processes, each with its share of the micro-batches, against one process with all of them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from flexora.backbone.limits import require_trainer
from flexora.cli import main
from flexora.data.bilevel import OuterBatch
from flexora.errors import FlexoraError
from flexora.search.estimators import Unrolled
from flexora.search.inner import AdamW
from flexora.search.processes import Processes
from tests.commands import FORKSERVER, printed_on
from tests.search.bilevel import outer_batch, toy

OUTER_STEPS = 4


def trajectory(rank: int, world_size: int, dropout: float, product: str) -> list[list[float]]:
    """Alpha after each outer step of a process that has every ``world_size``-th micro-batch."""
    case = toy("llama", AdamW(lr=1e-2), clip=0.05, dropout=dropout)
    case.problem.processes = Processes(rank, world_size)
    alpha = case.problem.alpha.requires_grad_()
    outer = torch.optim.Adam([alpha], lr=0.05)
    path = []
    for step in range(OUTER_STEPS):
        joint = outer_batch(2, accumulate=4, seed=100 * step)
        validation = [micro for seed in (1, 2) for micro in outer_batch(1, seed=seed)["validation"]]
        own = slice(rank, None, world_size)
        batch = OuterBatch(outer_step=step, train=[micro[own] for micro in joint["train"]], validation=validation[own])
        alpha.grad = Unrolled(product=product)(case.problem, batch, seed=1_000 * step).hypergradient  # type: ignore[arg-type]
        outer.step()
        path.append(alpha.detach().tolist())
    return path


def work(rank: int, folder: str, dropout: float, product: str) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(trajectory(rank, 2, dropout, product), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("dropout", "product"),
    [(0.0, "finite_difference"), (0.1, "finite_difference"), (0.0, "forward_difference"), (0.0, "exact")],
)
def test_two_processes_give_the_alpha_of_one(tmp_path: Path, dropout: float, product: str) -> None:
    start_processes(work, args=(str(tmp_path), dropout, product), nprocs=2, start_method=FORKSERVER)  # type: ignore[no-untyped-call]
    first, second = (torch.tensor(torch.load(tmp_path / f"{rank}.pt"), dtype=torch.float64) for rank in range(2))
    assert torch.equal(first, second)
    alone = torch.tensor(trajectory(0, 1, dropout, product), dtype=torch.float64)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-9)


def test_a_search_on_two_devices_is_that_on_one(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through the command line: two devices with 2 micro-batches each against one with all 4."""
    file = recipe()
    states = {}
    for devices in (2, 1):
        folder = tmp_path / f"on_{devices}"
        settings = {"output_dir": folder, "trainer.devices": devices, "search.accumulate": 4 // devices}
        settings |= {"search.validation_batches": 2 // devices}
        arguments = ["search", "--config", str(file), *(f"--{name}={value}" for name, value in settings.items())]
        printed = printed_on(devices, arguments, capfd)
        states[devices] = torch.load(folder / "search" / "checkpoints" / "step-0000003.ckpt")
        assert printed.count("layers chosen") == 1
        with (folder / "search" / "history.csv").open() as history:
            assert len(list(csv.DictReader(history))) == 3
    (tmp_path / "on_2" / "search" / "done.json").unlink()
    flags = [f"--output_dir={tmp_path / 'on_2'}", "--search.accumulate=2", "--search.validation_batches=1"]
    assert main(["search", "--config", str(file), *flags]) == 2
    assert "made on 2 devices, but the trainer has 1" in capfd.readouterr().err
    for many, one in zip(states[2]["theta"], states[1]["theta"], strict=True):
        torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(states[2]["alpha"], states[1]["alpha"], rtol=1e-3, atol=1e-6)


def test_processes_that_cannot_hand_back_their_result_are_refused() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    with pytest.raises(FlexoraError, match="or strategy ddp"):
        require_trainer(trainer, "search")
