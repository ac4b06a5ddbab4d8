"""A small run, synthetic and complete: six layers, three of them chosen, eight outer steps, three arms."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from flexora.scoring.results import ArmResult, Estimate, Results
from flexora.search.selection import Selection, SelectionBase, SelectionData, Stability

ALPHA = [-0.4, 0.9, 0.3, -0.2, 0.1, -0.7]
CHOSEN = [1, 2, 4]


@pytest.fixture
def selection() -> Selection:
    """Three of six layers, with every optional part."""
    exps = [math.exp(value) for value in ALPHA]
    return Selection(
        base=SelectionBase(architecture="LlamaForCausalLM", num_layers=6, model="tiny/model"),
        layers=CHOSEN,
        targets={layer: ["q_proj", "v_proj"] for layer in CHOSEN},
        alpha=ALPHA,
        gates=[6 * value / sum(exps) for value in exps],
        rule={"name": "Positive"},
        stability=Stability(last_steps=4, frequency=[0.0, 1.0, 0.75, 0.25, 1.0, 0.0]),
        search={"outer_steps": 8, "optimizer": {"lr": 0.0625}},
        data=SelectionData(name="arc_easy", fingerprint="f00d", train_rows=90, validation_rows=10),
        seed=1234,
    )


@pytest.fixture
def results() -> Results:
    """Three arms; flexora has half of plain LoRA's parameters."""

    def arm(name: str, layers: int, acc: float, over: float | None) -> ArmResult:
        return ArmResult(
            name=name,
            adapted_layers=layers,
            trainable_parameters=71_333 * layers,
            metrics={"acc": Estimate(value=acc, stderr=0.0221), "acc_norm": Estimate(value=acc + 0.01, stderr=0.0223)},
            loss=1.5,
            over_base=None if over is None else {"acc_norm": Estimate(value=over, stderr=0.0194)},
        )

    return Results(
        benchmark="ARC-Easy",
        split="test",
        rows=500,
        split_rows=2376,
        model="tiny/model",
        precision="float32",
        primary_metric="acc_norm",
        arms=[arm("base", 0, 0.48, None), arm("lora", 6, 0.61, 0.13), arm("flexora", 3, 0.602, 0.122)],
    )


@pytest.fixture
def run_dir(tmp_path: Path, selection: Selection, results: Results) -> Path:
    """A run with all its parts."""
    folder = tmp_path / "run"
    selection.write(folder / "search" / "selection.json")
    results.write(folder / "evaluate" / "results.json")
    with (folder / "search" / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        scalars = ["outer_step", "repeat", "train_loss", "validation_loss", "hypergradient_norm"]
        writer.writerow([*scalars, *(f"alpha_{layer}" for layer in range(6))])
        for step in range(1, 9):
            writer.writerow([step, 1, 2.0 - step / 10, 2.5 - step / 10, 0.1, *(value * step / 8 for value in ALPHA)])
    for phase, rows in (("finetune", "1,2.5,2.25\n2,2.0,2.125\n3,1.5,2.5\n"), ("lora", "1,2.5,\n2,2.0,2.375\n")):
        (folder / phase).mkdir()
        (folder / phase / "history.csv").write_text(f"epoch,train_loss,val_loss\n{rows}")
    (folder / "search" / "config.yaml").write_text("seed: 1234  # <b>bold</b>\n")
    return folder
