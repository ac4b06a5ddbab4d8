"""Values that are infinite or not a number: no step is made with them, and the message says where they came from."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader

from flexora.backbone.loading import Backbone
from flexora.checkpoint import read_checkpoint
from flexora.cli import main
from flexora.data.batch import Batch, terms
from flexora.errors import FlexoraError
from flexora.finetune.guard import FiniteSteps
from flexora.finetune.module import FinetuneModule
from flexora.finite import NonFiniteError, require_finite
from flexora.scoring.likelihood import answer_loss
from flexora.search.inner import SGD
from tests.commands import FORKSERVER
from tests.search.bilevel import random_batch, toy

POISONED = {
    "loss": lambda loss, model: loss * torch.nan,
    "infinite loss": lambda loss, model: loss / 0,
    # The value is 0, and its derivative infinity times 0.
    "gradient": lambda loss, model: loss + (0 * _first(model).sum()).square().sqrt(),
}


def _first(model: torch.nn.Module) -> Tensor:
    return next(p for name, p in model.named_parameters() if p.requires_grad and "lora_B" in name)


class Poison:
    """The loss of both phases, with something wrong in the given calls of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.at: set[int] = set()
        self.kind = "loss"
        self.rows: list[int] = []
        for phase in ("search", "finetune"):
            monkeypatch.setattr(f"flexora.{phase}.module.answer_loss", self)

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        self.calls += 1
        loss = answer_loss(model, batch)
        if self.calls not in self.at:
            return loss
        self.rows = batch["rows"].tolist()
        return POISONED[self.kind](loss, model)

    def run(self, arguments: list[str], at: set[int], kind: str = "loss") -> int:
        """Run a command in which these calls go wrong."""
        self.calls, self.at, self.kind = 0, at, kind
        return main(arguments)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


#: Calls of the loss in an outer step with T = 2: two inner steps, the outer objective, the way back.
WHERE = {1: "training", 2: "training", 3: "held-out", 4: "training", 7: "training"}


@pytest.mark.parametrize("kind", POISONED)
def test_the_search_stops_before_the_step_and_names_it(
    kind: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In the second outer step, at each of its gradients; then the same command goes on as if nothing had been."""
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    arguments = ["search", "--config", str(recipe()), "--search.accumulate=1", "--search.outer_steps=3"]
    arguments += ["--search.checkpoint_every=1", "--output_dir"]
    poison = Poison(monkeypatch)
    assert poison.run([*arguments, str(tmp_path / "straight")], set()) == 0
    assert poison.calls == 3 * 7
    capfd.readouterr()
    for call, split in WHERE.items():
        folder = tmp_path / f"at_{call}"
        assert poison.run([*arguments, str(folder)], {7 + call}, kind) == 2
        error = capfd.readouterr().err.splitlines()[-1]
        assert error.startswith("flexora search: error: search: outer step 2: the ")
        what = {"loss": "loss is nan", "infinite loss": "loss is inf", "gradient": "lora_B.default.weight is nan"}
        assert what[kind] in error
        named = error.partition(f"({split} ")[2].partition(")")[0]
        assert len(named.replace(",", "").split()[1:]) == len(set(poison.rows))
        assert "search.inner_optimizer.lr, or let search.skip_non_finite leave out" in error
        assert [file.name for file in (folder / "search" / "checkpoints").glob("*.ckpt")] == ["step-0000001.ckpt"]
        if kind != "loss":
            continue
        assert poison.run([*arguments, str(folder)], set()) == 0
        straight = (tmp_path / "straight" / "search" / "history.csv").read_bytes()
        assert (folder / "search" / "history.csv").read_bytes() == straight


def test_the_search_leaves_steps_out(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A step that is left out leaves alpha, LoRA and both optimisers as they were; the count outlives a start."""
    arguments = ["search", "--config", str(recipe()), "--search.accumulate=1", "--search.outer_steps=4"]
    arguments += ["--search.checkpoint_every=1", "--search.keep_checkpoints=9", "--search.skip_non_finite=2"]
    poison = Poison(monkeypatch)
    # In the way back of the second step, at its last gradient, and in the third one at its first: 8 calls in all.
    assert poison.run(arguments, {7 + 7, 14 + 1}) == 0
    printed = capfd.readouterr().out
    assert "search: outer step 2 is left out: the loss is nan (training rows" in printed.replace("lines", "rows")
    assert "; 2 of at most 2 (search.skip_non_finite)" in printed
    folder = tmp_path / "out" / "search"
    history = lines(folder / "history.csv")
    assert [row["hypergradient_norm"] == "nan" for row in history] == [False, True, True, False]
    alphas = [[value for name, value in row.items() if name.startswith("alpha_")] for row in history]
    assert alphas[0] == alphas[1] == alphas[2] != alphas[3]
    before, _, after, _ = (read_checkpoint(folder / "checkpoints" / f"step-{step:07d}.ckpt") for step in (1, 2, 3, 4))
    assert all(map(torch.equal, before["theta"], after["theta"]))
    assert (before["inner_step"], after["inner_step"]) == (2, 2)
    assert (before["inner_clock"], after["inner_clock"]) == (2, 6)
    assert torch.equal(
        before["outer_optimizer"]["state"][0]["exp_avg"], after["outer_optimizer"]["state"][0]["exp_avg"]
    )
    assert '"skipped_steps": 2' in (folder / "selection.json").read_text()
    # Two are used up: a third stops the search, and a higher number lets the same command go on.
    again = [*arguments, f"--output_dir={tmp_path / 'again'}"]
    assert poison.run(again, {7 + 1, 8 + 1, 9 + 1}) == 2
    assert "let search.skip_non_finite (now 2, all used) leave out more such steps" in capfd.readouterr().err
    assert poison.run([*again, "--search.skip_non_finite=3"], {1}) == 0
    assert "; 3 of at most 3" in capfd.readouterr().out


def test_a_search_without_a_step_has_no_result(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", "--config", str(recipe()), "--search.skip_non_finite=9"]
    assert Poison(monkeypatch).run(arguments, set(range(99))) == 2
    assert "search: no outer step was made" in capfd.readouterr().err
    assert not (tmp_path / "out" / "search" / "selection.json").exists()


def test_a_check_that_is_not_finite_costs_no_step(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["search", "--config", str(recipe()), "--search.accumulate=1", "--search.check_every=1"]
    assert Poison(monkeypatch).run(arguments, {2}) == 0
    history = lines(tmp_path / "out" / "search" / "history.csv")
    assert [row["cosine"] == "" for row in history] == [True, False, False]
    assert "nan" not in {row["hypergradient_norm"] for row in history}


@pytest.mark.parametrize(("scale", "stops"), [(None, True), (65536.0, False), (1.0, True)])
def test_what_a_scaler_cannot_mend(scale: float | None, stops: bool) -> None:
    """Overflows are the scaler's until its scale is 1."""
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([torch.nan, 1.0])
    peft_model = SimpleNamespace(named_parameters=lambda: [("w", weight)])
    module = SimpleNamespace(step_losses=[(torch.ones(()), torch.tensor([0]))], peft_model=peft_model)
    scaler = None if scale is None else SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
        world_size=1,
        global_step=0,
        current_epoch=0,
    )
    guard: Any = FiniteSteps(0)
    with pytest.raises(FlexoraError, match="the gradient of w is nan") if stops else nullcontext():
        guard.on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))


def test_steps_that_run_away_are_found(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Without any help: a learning rate beyond all measure."""
    assert main(["search", "--config", str(recipe()), "--search.inner_optimizer.lr=1e30"]) == 2
    assert "search: outer step 1: the " in capfd.readouterr().err
    flags = ["--selection=1", "--finetune.learning_rate=1e30", "--finetune.warmup_ratio=0"]
    assert main(["finetune", "--config", str(recipe()), *flags]) == 2
    assert "finetune: step 2 (epoch 1): the " in capfd.readouterr().err


def test_a_gate_that_is_not_finite_is_named() -> None:
    problem = toy("llama", SGD(lr=0.1)).problem
    with pytest.raises(NonFiniteError, match="the gate of 2 is nan"):
        problem.gates.apply(torch.tensor([1.0, 1.0, torch.nan, 1.0]))


@pytest.mark.parametrize("kind", POISONED)
def test_the_finetune_stops_or_leaves_the_step_out(
    kind: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The second of two accumulated batches of the second step goes wrong."""
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    arguments = ["finetune", "--config", str(recipe()), "--selection=1,3", "--trainer.accumulate_grad_batches=2"]
    arguments += ["--finetune.checkpoint_every=1", "--finetune.keep_checkpoints=99"]
    poison = Poison(monkeypatch)
    assert poison.run(arguments, {2 + 4}, kind) == 2  # after the two batches of the sanity check
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("flexora finetune: error: finetune: step 2 (epoch 1): the ")
    assert "; no step was made with it; lower finetune.learning_rate, or let finetune.skip_non_finite" in error
    # The step's first batch is done again with the second, which goes wrong once more and is left out.
    assert poison.run([*arguments, "--finetune.skip_non_finite=1"], {2}, kind) == 0
    assert "finetune: step 2 (epoch 1) is left out: the " in capfd.readouterr().out
    checkpoints = tmp_path / "out" / "finetune" / "checkpoints"
    before, after, last = (
        read_checkpoint(checkpoints / name)
        for name in ("step-0000001.ckpt", "step-0000002.ckpt", sorted(p.name for p in checkpoints.glob("*.ckpt"))[-1])
    )
    assert all(torch.equal(before["state_dict"][name], tensor) for name, tensor in after["state_dict"].items())
    first, second = (kept["optimizer_states"][0]["state"][0] for kept in (before, after))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert last["optimizer_states"][0]["state"][0]["step"] == last["global_step"] - 1
    adapter = load_file(tmp_path / "out" / "finetune" / "adapter" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in adapter.values())
    history = lines(tmp_path / "out" / "finetune" / "history.csv")
    assert all(torch.tensor(float(row["train_loss"])).isfinite() for row in history)


def test_a_step_without_gradients_passes_the_scaler(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler that has not looked at the gradients before fails over a step that is left out."""
    poison = Poison(monkeypatch)
    poison.at = {2}
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), LoraConfig(r=2), skip_non_finite=1)
    batch = random_batch(1)
    batch["normalizer"] = float(terms(batch))
    trainer.fit(module, DataLoader([batch] * 3, batch_size=None))  # type: ignore[arg-type]
    (guard,) = [callback for callback in trainer.callbacks if isinstance(callback, FiniteSteps)]
    assert (trainer.global_step, guard.skipped) == (3, 1)
    assert all(p.isfinite().all() for p in module.parameters())
    fused = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])  # whose gradients it was not given, as a fused one's
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(fused)


def test_adalora_leaves_no_step_out(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    adapter = "{class_path: AdaLoraConfig, init_args: {init_r: 4, target_r: 2, tinit: 2, tfinal: 2}}"
    flags = ["--selection=1", "--finetune.adapter", adapter, "--finetune.skip_non_finite=1"]
    assert main(["finetune", "--config", str(recipe()), *flags]) == 2
    assert "finetune.skip_non_finite: AdaLoraConfig" in capfd.readouterr().err


def work(rank: int, folder: Path) -> None:
    """What each of two processes does: its own losses, and gradients that were summed before."""
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    sharded = [distribute_tensor(torch.full((1, 3), value), mesh, [Shard(0)]) for value in (1.0, torch.nan)]
    good, found = torch.ones(2), []
    for loss, losses, gradients in (
        (2.0, [(1.0, torch.tensor([rank]))], [good, good]),
        (torch.nan, [(torch.nan if rank else 1.0, torch.tensor([rank, 5]))], [good, good]),
        (2.0, [(1.0, torch.tensor([rank, 7]))], [good, torch.tensor([torch.inf, 1.0])]),
        (2.0, [(1.0, torch.tensor([rank]))], [sharded[0], sharded[0]]),
        (2.0, [(1.0, torch.tensor([rank]))], [sharded[0], sharded[1]]),
    ):
        try:
            require_finite(loss, losses, gradients, ["first", "second"], 2)
            found.append("finite")
        except NonFiniteError as error:
            found.append(f"{error.what}: {error.rows}")
    (folder / f"found_{rank}.txt").write_text("\n".join(found))
    distributed.destroy_process_group()


def test_two_processes_stop_together(tmp_path: Path) -> None:
    """One alone has the bad loss, or all of a sharded gradient; both know."""
    start_processes(work, (tmp_path,), nprocs=2, start_method=FORKSERVER)
    for rank in range(2):
        assert (tmp_path / f"found_{rank}.txt").read_text().splitlines() == [
            "finite",
            "the loss is nan: [1, 5]",
            "the gradient of second is inf: [0, 7, 1, 7]",
            "finite",
            "the gradient of second is nan: [0, 1]",
        ]
