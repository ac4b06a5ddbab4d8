"""Memory and time of one outer step beside plain LoRA steps on the same batches.

``python -m tests.benchmarks.hypergradient`` measures a tiny model; ``--model packaged`` the 135M one after ``flexora
fetch demo``; ``--model llama-3-8b --device cuda`` the shapes of Llama-3-8B with random weights in bfloat16. Memory is
what torch allocates above the loaded model, measured for each case in a process of its own; times are medians of
rounds in one process, in which all cases take turns with plain steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from peft import LoraConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flexora.backbone.adapters import attach
from flexora.backbone.families import family_of
from flexora.backbone.loading import Backbone
from flexora.data.batch import Batch, collate
from flexora.data.bilevel import OuterBatch
from flexora.data.encoding import EncodedQuestion
from flexora.scoring.likelihood import answer_loss
from flexora.search.estimators import Estimator, FirstOrder, Unrolled
from flexora.search.gates import Gates
from flexora.search.inner import AdamW, ClipByNorm
from flexora.search.named import resolve_selection
from flexora.search.problem import BilevelProblem
from flexora.search.units import Units
from tests.search.bilevel import Toy, gate_sites, oracle
from tests.tiny import tiny_model

LR = 1e-3
ESTIMATORS: dict[str, Estimator] = {
    "first order": FirstOrder(),
    "finite difference": Unrolled(),
    "forward difference": Unrolled(product="forward_difference"),
    "exact": Unrolled(product="exact"),
}
#: How many gradients an outer step takes with T inner steps, where it takes nothing else.
GRADIENTS: dict[str, Callable[[int], int]] = {
    "first order": lambda steps: steps + 1,
    "finite difference": lambda steps: 3 * steps + 1,
    "forward difference": lambda steps: 2 * steps + 1,
}
ANSWER = 8  # supervised tokens of a row

#: Shapes of meta-llama/Meta-Llama-3-8B.
LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}


def load(name: str, device: str) -> PreTrainedModel:
    """A base model with frozen weights on its device."""
    if name == "tiny":
        model = tiny_model("llama")
    elif name == "packaged":
        model = Backbone().load_model()
    else:
        with torch.device(device):
            model = LlamaForCausalLM._from_config(LlamaConfig(**LLAMA_3_8B), dtype=torch.bfloat16)
    return model.requires_grad_(False).to(device)


class Bench:
    """A problem with LoRA off its start, and random batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        base = load(options.model, options.device)
        family = family_of("LlamaForCausalLM")
        layers, self.vocabulary = base.config.num_hidden_layers, base.config.vocab_size
        everything = resolve_selection("all", "LlamaForCausalLM", layers, family.expand(None))
        torch.manual_seed(0)
        model = attach(base, LoraConfig(r=8, lora_alpha=16), everything, family)
        units = Units(layers)
        alpha = torch.zeros(layers, device=options.device)
        gates = Gates(model, family.layers, units)
        self.problem = BilevelProblem(model, gates, alpha, AdamW(lr=LR), ClipByNorm(), answer_loss)
        self.sites = gate_sites(model, units)
        self.theta_bytes = sum(tensor.nbytes for tensor in self.problem.theta)
        self.device, self.rows, self.length = torch.device(options.device), options.rows, options.length
        self.half = options.model == "llama-3-8b"
        for step in range(2):  # leaves the cold start, and makes what torch makes once
            self.problem.inner_step([self.batch(step, rows=1)], seed=0)

    def batch(self, seed: int, rows: int | None = None) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        questions = [
            EncodedQuestion(
                sequences=[torch.randint(0, self.vocabulary, (self.length,), generator=generator).tolist()],
                starts=[self.length - ANSWER],
                chars=[ANSWER],
                answer=0,
                unscored=[],
                cut=0,
            )
            for _ in range(rows or self.rows)
        ]
        made: dict[str, Any] = dict(collate(questions, list(range(len(questions))), 0, all_choices=False))
        for name, value in made.items():
            made[name] = value.to(self.device) if isinstance(value, Tensor) else value
        return made  # type: ignore[return-value]

    def outer(self, inner_steps: int) -> OuterBatch:
        train = [[self.batch(10 + t)] for t in range(inner_steps)]
        return OuterBatch(outer_step=0, train=train, validation=[self.batch(5)])

    def plain_lora(self, batch: OuterBatch, steps: int) -> None:
        """As many steps of LoRA, the usual way: backward, and torch's AdamW."""
        theta = list(self.problem.theta)
        optimizer = torch.optim.AdamW(theta, lr=LR, weight_decay=0.0, foreach=False)
        model = self.problem.model.train()
        for step in range(steps):
            (micro,) = batch["train"][step % len(batch["train"])]
            (answer_loss(model, micro) / micro["target"].numel()).backward()
            optimizer.step()
            optimizer.zero_grad()

    def case(self, name: str, batch: OuterBatch, plain_steps: int = 1) -> None:
        """Run a case: an outer step, or plain steps of LoRA on its batches."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.half else nullcontext():
            if name == "plain LoRA":
                self.plain_lora(batch, plain_steps)
            elif name == "autograd unroll":  # the graph of all steps is kept, as general libraries do it
                oracle(Toy(self.problem, self.sites, scaling=2.0), batch, seed=0, stride=1)
            else:
                ESTIMATORS[name](self.problem, batch, seed=0)


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Most bytes that torch held at once during a run, above what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()  # garbage of others that is freed meanwhile would count as memory given back
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Wall time of a run."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_memory(options: argparse.Namespace, cases: list[tuple[str, int]]) -> dict[tuple[str, int], dict[str, int]]:
    """Peak memory of each case (name, inner steps), each in a process of its own."""
    found = {}
    for name, inner_steps in track(cases, "memory"):
        arguments = [f"--{key}={value}" for key, value in vars(options).items() if value is not None]
        command = [sys.executable, "-m", "tests.benchmarks.hypergradient", *arguments, f"--only={name}:{inner_steps}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        found[name, inner_steps] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_time(options: argparse.Namespace, inner_steps: int) -> list[dict[str, float]]:
    """Wall time of each case in each round, and that of a plain LoRA step from a run of them right before it.

    A shared machine grows slower and faster: only neighbours in time compare.
    """
    bench = Bench(options)
    batch = bench.outer(inner_steps)
    names = [*ESTIMATORS] + ([] if options.model == "llama-3-8b" else ["autograd unroll"])
    rounds = []
    for _ in track(range(options.rounds), "time"):
        found = {}
        for name in names:
            steps = GRADIENTS[name](inner_steps) if name in GRADIENTS else 3 * inner_steps + 1  # about as long
            found[f"plain for {name}"] = seconds(partial(bench.case, "plain LoRA", batch, steps), bench.device) / steps
            found[name] = seconds(partial(bench.case, name, batch), bench.device)
        rounds.append(found)
    return rounds


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["tiny", "packaged", "llama-3-8b"], default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the times; 0 for memory alone")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    if options.only:
        name, inner_steps = options.only.split(":")
        bench = Bench(options)
        peak = peak_bytes(partial(bench.case, name, bench.outer(int(inner_steps))), bench.device)
        print(json.dumps({"peak": peak, "theta": bench.theta_bytes}))
        return
    small = options.model != "llama-3-8b"
    cases = [
        ("plain LoRA", 16),
        *(("finite difference", t) for t in (2, 16)),
        ("forward difference", 16),
        *(("exact", t) for t in (2, 4)),
    ]
    cases += [("autograd unroll", t) for t in (2, 4)] if small else []
    memory = measure_memory(options, cases)
    plain, theta = (memory["plain LoRA", 16][key] for key in ("peak", "theta"))
    console = Console(width=100)
    table = Table("case", "T", "peak above the model, MB", "over plain LoRA", title=f"{options.model}: memory")
    for (name, inner_steps), found in memory.items():
        steps = "-" if name == "plain LoRA" else str(inner_steps)
        table.add_row(name, steps, f"{found['peak'] / 1e6:,.1f}", f"{found['peak'] / plain:.3f}")
    console.print(table)
    growth = memory["finite difference", 16]["peak"] - memory["finite difference", 2]["peak"]
    console.print(
        f"finite difference from T = 2 to 16: {growth / 1e6:+.1f} MB = {growth / 14 / theta:.2f} x bytes of theta "
        f"({theta / 1e6:.2f} MB) for each of the 14 steps"
    )
    if not options.rounds:
        return
    inner_steps = 4
    rounds = measure_time(options, inner_steps)
    gradients = {name: count(inner_steps) for name, count in GRADIENTS.items()}
    title = f"{options.model}: time, T = {inner_steps}, medians of {len(rounds)} rounds"
    table = Table("case", "seconds", "plain LoRA steps", "over its gradients", title=title)
    for name in (name for name in rounds[0] if not name.startswith("plain")):
        steps = median(found[name] / found[f"plain for {name}"] for found in rounds)
        over = f"{steps / gradients[name]:.3f} of {gradients[name]}" if name in gradients else ""
        table.add_row(name, f"{median(found[name] for found in rounds):.3f}", f"{steps:.2f}", over)
    console.print(table)
    if "autograd unroll" in rounds[0]:
        over = median(found["exact"] / found["autograd unroll"] for found in rounds)
        console.print(f"exact over autograd unroll: {over:.2f}")


if __name__ == "__main__":
    main()
