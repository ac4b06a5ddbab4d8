"""``flexora merge``: base model and adapter as one stand-alone model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flexora.backbone.loading import Backbone
from flexora.backbone.merging import merge
from flexora.errors import FlexoraError
from flexora.places import own_path
from flexora.verbs.arms import existing_adapter
from flexora.verbs.bases import tell_other_base
from flexora.verbs.phase import silence
from flexora.verbs.settings import Recipe


def main(arguments: Sequence[str]) -> int:
    """Merge an adapter into the recipe's base model, and write the model.

    Raises:
        FlexoraError: If the recipe, the adapter or the target does not allow it.
    """
    parser = argparse.ArgumentParser(
        prog="flexora merge",
        allow_abbrev=False,
        description="Write base model and adapter as one model that transformers loads without PEFT, in "
        "backbone.dtype. A quantised base is merged unquantised. Other options are those of flexora evaluate.",
    )
    parser.add_argument("--adapter", default="flexora", help="flexora (default), lora, or a PEFT folder")
    parser.add_argument("--to", type=Path, help="folder of the model; default: merge/model in output_dir")
    own, rest = parser.parse_known_args(arguments)
    recipe = Recipe("merge", rest)
    backbone = Backbone(**recipe.sections["backbone"])
    adapter = existing_adapter(recipe.folder, own.adapter, recipe.sections["backbone"], "--adapter")
    tell_other_base(adapter, recipe.sections["backbone"], f"merge: {own.adapter}")
    if adapter is None:
        raise FlexoraError("--adapter: base is the model itself, there is nothing to merge; name an adapter")
    target: Path = own_path(own.to or recipe.folder.root / "merge" / "model", "--to")
    silence()
    difference = merge(backbone, adapter, target)
    console = Console()
    if backbone.quantization is not None:
        console.print(
            f"merged into the full weights, not into those of {backbone.quantization} that the adapter was trained on",
            soft_wrap=True,
        )
    size = sum(file.stat().st_size for file in target.iterdir())
    console.print(
        f"{own.adapter} merged into {backbone.model}: {target}, {size / 1e6:,.1f} MB in {backbone.dtype}; on a test "
        f"sentence its logits differ from those of base and adapter by {difference:.1e} at most",
        soft_wrap=True,
    )
    return 0
