"""The model card: metadata by huggingface_hub's classes, the text from ``card.md.j2``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import ModelCard, ModelCardData

from flexora.publish.base import Base
from flexora.publish.figures import HUB_METRICS, circumstances, model_index
from flexora.publish.prompts import prompt_lines
from flexora.publish.redaction import public_results
from flexora.publish.rows import Rows, is_folder
from flexora.publish.run import ARM, FinishedRun
from flexora.report.cells import layer_cells
from flexora.report.summary import caveats, chosen, stability_lines
from flexora.report.terminal import escaped_markdown, markdown_table, results_markdown
from flexora.search.selection import Selection
from flexora.zoo.listing import strip
from flexora.zoo.references import is_reference

TEMPLATE = Path(__file__).parent / "card.md.j2"
_SAID = {"base": "the base model alone", "lora": "the same kind of adapter on all layers", ARM: "this adapter"}
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
    card: ModelCard = ModelCard.from_template(
        card_data(run, base, trained, measured, repo_id),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        title=repo_id.rsplit("/", 1)[-1],
        method=escaped_markdown(_method(run)),
        chosen=chosen(selection),
        benchmark=escaped_markdown(_names(trained)),
        measured_on=escaped_markdown(_names(measured)),
        base=base,
        revision="" if base.revision is None else f', revision="{base.revision}"',
        prompts="\n\n".join(prompt_lines(run.recipe["data"])),
        illustrative=run.illustrative,
        layers=selection.num_layers,
        bar=strip(selection.layers, selection.num_layers),
        layer_table=_layer_table(selection),
        stability=[escaped_markdown(line) for line in stability_lines(selection)],
        pictures=pictures,
        results=results_markdown(public_results(run.results, base)),
        circumstances=[escaped_markdown(f"{part.benchmark}: {circumstances(run, base, part)}.") for part in parts],
        versions=escaped_markdown(_versions(run)),
        seed=run.recipe["seed"],
        layers_from=_layers_from(run),
        again=_again(run),
        arms=_arms(run),
        sha256=run.sha256,
        licence=", ".join(filter(None, (licence.name or licence.id, licence.link))),
        trained=[_line(own) for own in trained],
        measured=[_line(own) for own in measured],
        share_alike=escaped_markdown(_names([own for own in trained + measured if own.share_alike])),
        # An illustrative search is said at the top.
        caveats=[escaped_markdown(line) for line in caveats(replace(run.parts, selection=None))],
    )
    return card


def card_data(run: FinishedRun, base: Base, trained: list[Rows], measured: list[Rows], repo_id: str) -> ModelCardData:
    """The card's metadata."""
    method = run.method.removesuffix("Config").lower()
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


def _layer_table(selection: Selection) -> str:
    header, rows = layer_cells(selection)
    return markdown_table(header, [[escaped_markdown(cell) for cell in row] for row in rows])


def _method(run: FinishedRun) -> str:
    """The adapter as people call it, with its size."""
    peft = run.peft
    name = {"LoraConfig": "LoRA", "AdaLoraConfig": "AdaLoRA"}.get(run.method, run.method.removesuffix("Config"))
    variants = [called for setting, called in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")) if peft.get(setting)]
    rank = "target_r" if "target_r" in peft else "r"
    settings = [f"{setting} {peft[setting]}" for setting in (rank, "lora_alpha") if peft.get(setting)]
    return "/".join(variants or [name]) + (f" ({', '.join(settings)})" if settings else "")


def _arms(run: FinishedRun) -> str:
    """What the arms are; those that were scored besides have folders as names."""
    scored = [arm.name for arm in run.results.arms]
    said = [f"`{name}` {{}}{what}" for name, what in _SAID.items() if name in scored]
    return ", ".join(text.format("" if place else "is ") for place, text in enumerate(said))


def _versions(run: FinishedRun) -> str:
    """The libraries of the run's own search; nothing else says them."""
    known = (run.selection.versions if run.searched else None) or {"flexora": version("flexora")}
    return ", ".join(f"{name} {known[name]}" for name in _LIBRARIES if name in known)


def _layers_from(run: FinishedRun) -> str:
    named, search, data = run.recipe["finetune"]["selection"], run.selection.search, run.selection.data
    if not run.searched and is_reference(named):
        return f"The layers are those of {escaped_markdown(named)}."
    if search is None:
        return "The layers were named by hand."
    rows = f" on {data.train_rows:,} rows, {data.validation_rows:,} others held out" if data else ""
    steps = (
        f"{search.get('outer_steps')} steps on alpha, each after {search.get('inner_steps')} steps on LoRA "
        f"({(search.get('estimator') or {}).get('name')}){rows}"
    )
    steps = escaped_markdown(steps)
    return f"The layers were searched by {steps}." if run.searched else f"Another search found the layers, by {steps}."


def _again(run: FinishedRun) -> str:
    """How the run is made again, and what that takes besides the recipe."""
    if run.recipe["finetune"]["warm_start"] and not run.searched:
        return "It started from an adapter that is not published here, so that the run cannot be made again from it."
    source = str(run.recipe["data"]["init_args"].get("source") or "hub")
    where = ", with the rows that data.source names" if is_folder(source) else ""
    return f"`flexora run --config config.yaml` makes the run again{where}."


def _line(rows: Rows) -> str:
    if rows.dataset is None:
        return escaped_markdown(f"{rows.name}: {rows.licence}")
    page = f"https://huggingface.co/datasets/{quote(rows.dataset)}"
    return (
        f"{escaped_markdown(rows.name)} ([{escaped_markdown(rows.dataset)}]({page})): {escaped_markdown(rows.licence)}"
    )


def _names(rows: Iterable[Rows]) -> str:
    return ", ".join(dict.fromkeys(own.name for own in rows))
