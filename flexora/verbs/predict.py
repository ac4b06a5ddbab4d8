"""``flexora predict``: answers for new rows."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from flexora.data.batching import length_batches
from flexora.data.datamodule import loader
from flexora.data.fingerprint import rows_fingerprint
from flexora.data.generative import GenerativeDataModule
from flexora.data.json_rows import as_row, numbers
from flexora.data.rows import EncodedRows
from flexora.data.sources import load_rows
from flexora.errors import FlexoraError
from flexora.files import sha256_of
from flexora.places import own_path
from flexora.scoring.accuracy import RowScore
from flexora.scoring.module import ScoreModule
from flexora.scoring.partial import Answer, PartialAnswers
from flexora.secrets import without_secrets
from flexora.verbs.arms import adapter_of, fingerprints
from flexora.verbs.bases import tell_other_base
from flexora.verbs.phase import lightning_cli, plain_errors
from flexora.verbs.settings import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

    from flexora.data.datamodule import AnswerDataModule


def main(arguments: Sequence[str]) -> int:
    """Answer the rows of a file, and write one line of JSON for each.

    Raises:
        FlexoraError: If the recipe, the rows, the adapter or the output does not allow it.
    """
    parser = argparse.ArgumentParser(
        prog="flexora predict",
        allow_abbrev=False,
        description="Answers for new rows, in a .jsonl, .json, .parquet or .csv file: prompt and choices, or prompt "
        "alone, or messages, as the recipe's data class reads them; data.columns and data.choices hold for them too. "
        "Prompts are written in the style of the recipe. Answers are kept as they come: the same command goes on from "
        "them. Other options are those of flexora evaluate.",
    )
    parser.add_argument("--rows", type=Path, required=True, help="the new rows")
    parser.add_argument("--adapter", default="flexora", help="flexora (default), lora, base, or a PEFT folder")
    parser.add_argument("--output", type=Path, help="default: predictions.jsonl in output_dir")
    own, rest = parser.parse_known_args(arguments)
    recipe = Recipe("evaluate", rest)
    recipe.require_precision("evaluate")
    own.rows = own_path(own.rows, "--rows")
    adapter = adapter_of(recipe.folder, own.adapter, recipe.sections, "--adapter")
    tell_other_base(adapter, recipe.sections["backbone"], f"predict: {own.adapter}")
    raw = load_rows([own.rows], "--rows")
    output = own_path(own.output or recipe.folder.root / "predictions.jsonl", "--output")
    _require_writable(output)
    kept = PartialAnswers(output)
    cli = lightning_cli(
        recipe,
        "evaluate",
        ScoreModule,
        {"backbone": recipe.sections["backbone"], "adapter": None if adapter is None else str(adapter)},
        trainer={"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
        callbacks=[kept],
        folder=recipe.folder.root / "predict",
    )
    data: AnswerDataModule = cli.datamodule
    generates = isinstance(data, GenerativeDataModule)
    room = data.answer_room if isinstance(data, GenerativeDataModule) else 0
    rows = data.encode(raw, str(own.rows), (), data.new_reader(), reported=True, room=room)
    cli.model.data, data.trainer = data, cli.trainer
    kept.go_on(_made_with(recipe, own, cli.model.backbone.fingerprint(), rows))
    left = rows.select([place for place, line in enumerate(rows["line"]) if line not in kept.answers])
    if kept.answers and cli.trainer.is_global_zero:
        print(f"predict: goes on from {len(kept.answers)} answers in {kept.file}", file=sys.stderr)
    lines = set(left["line"])
    new = ((number, row) for number, row in zip(numbers(raw), raw, strict=True) if number in lines)
    texts = {number: data.new_row(as_row(row)).get("choices", []) for number, row in new}

    def answer(index: int) -> Answer:
        row = left[index]
        if generates:
            return {"line": row["line"], "answer": cli.model.generated[index]}
        choice = _choice(cli.model.log_likelihoods[index], row["chars"], texts[row["line"]], data)
        return {"line": row["line"], **choice}

    kept.expect(answer)
    if len(left):
        with plain_errors(recipe, "evaluate", "predict"):
            # Trainer.predict would put a batch sampler of its own in the place of ours.
            cli.trainer.test(cli.model, dataloaders=_loader(data, left), verbose=False)
    if not cli.trainer.is_global_zero:  # another device's process of the same command: the first one writes
        return 0
    if len(left):
        cli.model.require_rows(len(left))
    kept.finish()
    Console().print(f"{len(kept.answers)} answers in {output}", soft_wrap=True)
    return 0


def _made_with(recipe: Recipe, own: argparse.Namespace, weights: str | None, rows: Dataset) -> dict[str, Any]:
    """What the answers depend on: with anything else they must not be gone on with."""
    settings = {name: value for name, value in recipe.settings("evaluate").items() if name != "evaluate"}
    made_with = {
        "rows": {"file": sha256_of(own.rows), "tokens": rows_fingerprint(rows)},
        "adapter": fingerprints(recipe.folder, [own.adapter]),
        "weights": weights,
        **settings,
    }
    kept: dict[str, Any] = json.loads(without_secrets(json.dumps(made_with)))
    return kept


def _require_writable(output: Path) -> None:
    """Make sure, before hours of answers, that there is a place for them.

    Raises:
        FlexoraError: If the file exists, or its folder cannot be written to.
    """
    if output.exists():
        raise FlexoraError(f"--output: {output} exists already; name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise FlexoraError(f"--output: cannot write to {output.parent}: {error.strerror}; name another file") from error


def _loader(data: AnswerDataModule, rows: Dataset) -> Any:
    if isinstance(data, GenerativeDataModule):
        return data.prompt_loader(rows)
    packed = EncodedRows(rows, data.pad_token, all_choices=True)
    return loader(packed, data.share.of(length_batches(packed.lengths, max_tokens=data.evaluate_tokens)))


def _choice(scores: list[float], chars: list[int], choices: Sequence[str], data: AnswerDataModule) -> dict[str, Any]:
    """The chosen one, by the benchmark's own metric, and its probability among the choices."""
    chosen = RowScore(scores, chars, 0, 1).prediction(data.primary_metric)
    probability = float(torch.tensor(scores, dtype=torch.float64).softmax(0)[chosen])
    return {"prediction": chosen, "choice": choices[chosen], "probability": probability, "log_likelihoods": scores}
