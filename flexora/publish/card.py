"""The model card: metadata by huggingface_hub's classes, the text from ``card.md.j2``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from flexora.publish.base import Base
from flexora.publish.figures import HUB_METRICS, circumstances, model_index
from flexora.publish.redaction import public_results
from flexora.publish.rows import Rows, is_folder
from flexora.publish.run import FinishedRun
from flexora.report.cells import layer_cells
from flexora.report.summary import caveats, chosen, stability_lines
from flexora.report.terminal import markdown_table, results_markdown
from flexora.search.selection import Selection

TEMPLATE = Path(__file__).parent / "card.md.j2"
_LIBRARIES = ("flexora", "peft", "transformers", "torch", "lightning")


def model_card(
    run: FinishedRun, base: Base, trained: list[Rows], measured: list[Rows], repo_id: str, pictures: Sequence[str]
) -> ModelCard:
    """Write the card.

    Args:
        run: The run.
        base: The base model.
        trained: What it was trained on.
        measured: What it was evaluated on.
        repo_id: Where the card will be.
        pictures: Names of the pictures beside it.
    """
    selection, licence = run.selection, base.licence
    parts = run.results.parts or [run.results]
    source = str(run.recipe["data"]["init_args"].get("source") or "hub")
    card: ModelCard = ModelCard.from_template(
        card_data(run, base, trained, measured, repo_id),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        title=repo_id.rsplit("/", 1)[-1],
        method=_method(run.peft),
        chosen=chosen(selection),
        benchmark=_names(trained),
        measured_on=_names(measured),
        base=base,
        revision="" if base.revision is None else f', revision="{base.revision}"',
        illustrative=run.illustrative,
        layers=selection.num_layers,
        bar=layer_bar(selection),
        layer_table=markdown_table(*layer_cells(selection)),
        stability=stability_lines(selection),
        pictures=pictures,
        results=results_markdown(public_results(run.results, base)),
        circumstances=[f"{part.benchmark}: {circumstances(run, base, part)}." for part in parts],
        versions=_versions(selection),
        seed=run.recipe["seed"],
        layers_from=_layers_from(selection),
        where=" with the rows in the folder that data.source names" if is_folder(source) else "",
        sha256=run.sha256,
        licence=", ".join(filter(None, (licence.name or licence.id, licence.link))),
        trained=[_line(own) for own in trained],
        measured=[_line(own) for own in measured],
        share_alike=_names([own for own in trained + measured if own.share_alike]),
        caveats=caveats(replace(run.parts, selection=None)),  # an illustrative search is said at the top
    )
    return card


def card_data(run: FinishedRun, base: Base, trained: list[Rows], measured: list[Rows], repo_id: str) -> ModelCardData:
    """The card's metadata."""
    method = str(run.peft["peft_type"]).lower()
    figures = model_index(run, base, measured)
    datasets = sorted({own.dataset for own in [*trained, *measured] if own.dataset is not None})
    parts = run.results.parts or [run.results]
    metrics = sorted(
        {HUB_METRICS[metric] for part in parts for metric in part.arms[0].metrics if metric in HUB_METRICS}
    )
    return ModelCardData(
        base_model=base.id,
        base_model_relation="adapter",
        library_name="peft",
        license=base.licence.id,
        license_name=base.licence.name,
        license_link=base.licence.link if base.licence.id == "other" else None,
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["flexora", method, "layer-selection"])),
        datasets=datasets or None,
        metrics=metrics or None,
        model_name=repo_id.rsplit("/", 1)[-1] if figures else None,
        eval_results=figures or None,
    )


def layer_bar(selection: Selection) -> str:
    """One character for each layer, from the lowest: with an adapter or without."""
    return "".join("█" if layer in selection.layers else "░" for layer in range(selection.num_layers))


def _method(peft: dict[str, Any]) -> str:
    kind = {"LORA": "LoRA"}.get(peft["peft_type"], peft["peft_type"])
    settings = [f"{name} {peft[name]}" for name in ("r", "lora_alpha") if peft.get(name)]
    return f"{kind} ({', '.join(settings)})" if settings else kind


def _versions(selection: Selection) -> str:
    known = selection.versions or {"flexora": version("flexora")}
    return ", ".join(f"{name} {known[name]}" for name in _LIBRARIES if name in known)


def _layers_from(selection: Selection) -> str:
    search, data = selection.search, selection.data
    if search is None:
        return "The layers were named by hand."
    rows = f" on {data.train_rows:,} rows, {data.validation_rows:,} others held out" if data else ""
    return (
        f"The layers were searched by {search.get('outer_steps')} steps on alpha, each after "
        f"{search.get('inner_steps')} steps on LoRA ({(search.get('estimator') or {}).get('name')}){rows}."
    )


def _line(rows: Rows) -> str:
    where = "" if rows.dataset is None else f" ([{rows.dataset}](https://huggingface.co/datasets/{rows.dataset}))"
    return f"{rows.name}{where}: {rows.licence}"


def _names(rows: Iterable[Rows]) -> str:
    return ", ".join(dict.fromkeys(own.name for own in rows))
