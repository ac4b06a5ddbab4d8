"""The findings of a run in plain words, computed from its data: the summary, the caveats and the pictures' titles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flexora.report.cells import estimate, heading, rows_scored, signed
from flexora.report.run import Course, History, Run
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.search.units import flatten

_SPOKEN = {"lora": "plain LoRA", "base": "the base model", "average": "average accuracy"}
_FINE_TUNES = {"flexora": "the fine-tune", "lora": "plain LoRA"}
_CLEAR = 2.0  # a difference of fewer standard errors is not called a gain or a loss


def model_and_benchmark(run: Run) -> tuple[str, str | None]:
    """Name of the model, and of the benchmark or the search's data where one is known."""
    base = run.selection.base if run.selection else None
    model = run.results.model if run.results else None
    data = run.selection.data if run.selection else None
    benchmark = run.results.benchmark if run.results else data.name if data else None
    return model or (base and (base.model or base.architecture)) or "A Flexora run", benchmark


def spans(layers: Sequence[int]) -> str:
    """Sorted layers with runs of three or more joined: ``0, 1, 5-9``, as ``--selection`` takes them."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = (f"{run[0]}-{run[-1]}" if run[2:] else ", ".join(map(str, run)) for run in runs)
    return ", ".join(parts)


def listing(selection: Selection) -> str:
    """The chosen layers, ``0, 3, 5-9``; with module-wise gates those of each projection, ``q_proj 3; v_proj 5-9``."""
    if not selection.projections:
        return spans(selection.layers)
    layers = {name: [n for n, names in selection.targets.items() if name in names] for name in selection.projections}
    return "; ".join(f"{name} {spans(sorted(own))}" for name, own in layers.items() if own)


def chosen(selection: Selection) -> str:
    """``14 of 30 layers``; with module-wise gates ``21 of 60 projections in 14 of 30 layers``."""
    layers = f"{len(selection.layers)} of {selection.num_layers} layers"
    if not selection.projections:
        return layers
    return f"{sum(map(selection.has_chosen, selection.units))} of {len(selection.units)} projections in {layers}"


def stability_lines(selection: Selection) -> list[str]:
    """How far repeats of the search agree, and how near its hypergradients were to exact ones, where that is known."""
    lines = []
    if selection.stability and (repeats := selection.stability.repeats):
        lines.append(
            f"{len(repeats.choices)} repeats agree to {repeats.mean_jaccard:.2f} (mean Jaccard overlap of what each "
            f"chooses alone; random choices of these sizes: {repeats.random_jaccard:.2f})."
        )
    cosine = (selection.search or {}).get("smallest_cosine_with_exact")
    if isinstance(cosine, float):
        lines.append(f"Hypergradients had a cosine of at least {cosine:.4f} with exact ones, where they were checked.")
    return lines


def summary(run: Run) -> str:
    """One paragraph: what was chosen, what it costs, and what it scores."""
    sentences = _choices(run)
    if run.results:
        sentences.append(_scores(run.results, "its" if sentences else "Flexora's"))
    if not sentences and run.history:
        sentences.append(
            f"The search has done {run.history.outer_steps[-1]:,} outer steps and has chosen no layers yet."
        )
    return " ".join(sentences) or "This run has neither searched nor evaluated yet."


def _choices(run: Run) -> list[str]:
    """What the search chose; and what was fine-tuned, where the user named other layers or projections."""
    tuned = run.tuned or run.selection
    if tuned is None:
        return []
    if run.selection is None:
        return [f"LoRA was put on {_with_cost(tuned, run.results)}, named by hand."]
    if tuned.targets == run.selection.targets:
        return [f"Flexora chose {_with_cost(tuned, run.results)}."]
    if tuned.layers == run.selection.layers and run.selection.projections is None:  # finetune.adapter names others
        names = list(dict.fromkeys(name for adapted in tuned.targets.values() for name in adapted))
        return [f"Flexora chose {_with_cost(tuned, run.results)}.", f"The fine-tune adapts {', '.join(names)} there."]
    return [
        f"The search chose {chosen(run.selection)}: {listing(run.selection)}.",
        f"LoRA was put on others, named by hand: {_with_cost(tuned, run.results)}.",
    ]


def _with_cost(selection: Selection, results: Results | None) -> str:
    arms = {arm.name: arm for arm in results.arms} if results else {}
    cost = ""
    if "flexora" in arms:
        parameters = arms["flexora"].trainable_parameters
        cost = f" ({parameters:,} trainable parameters"
        if "lora" in arms and arms["lora"].trainable_parameters:
            cost += f", {parameters / arms['lora'].trainable_parameters:.0%} of plain LoRA's"
        cost += ")"
    return f"{chosen(selection)}{cost}: {listing(selection)}"


def _scores(results: Results, whose: str) -> str:
    metric, base = results.primary_metric, ""
    scores = {arm.name: estimate(arm.metrics[metric]) for arm in results.arms if metric in arm.metrics}
    where = f"On {rows_scored(results)} {results.split} rows"
    own = scores.pop("flexora", None)
    if "base" in scores:  # it comes last, as what the others are measured against
        base = scores.pop("base")
    others = [f"{_SPOKEN.get(name, name)} {score}" for name, score in scores.items()]
    others += [f"{_SPOKEN['base']} {base}"] if base else []
    if own is None:
        return f"{where} {_SPOKEN.get(metric, metric)} is: {'; '.join(others) or 'not known'}."
    text = f"{where} {whose} {_SPOKEN.get(metric, metric)} is {'; '.join([own, *others])}."
    gain = next((arm.over_base for arm in results.arms if arm.name == "flexora"), None)
    if gain and metric in gain:
        text += f" Compared row by row with the base model, that is {estimate(gain[metric], sign=True)}."
    return text


def caveats(run: Run) -> list[str]:
    """What a reader must know before trusting the figures."""
    notes = []
    if run.selection and (run.selection.search or {}).get("illustrative"):
        notes.append("The search was short and is illustrative: it shows how layers are chosen, not which are best.")
    if run.results and run.results.development:
        notes.append(
            "Development rows were scored, a part of the train split: the figures serve to choose between settings, "
            "and favour what was chosen by them."
        )
    if run.results and run.results.rows < run.results.split_rows:
        notes.append(
            f"Only a cut of the {run.results.split} split was scored, {rows_scored(run.results)} rows: the figures are "
            "estimates for the split and not comparable with published ones on all of it."
        )
    return notes


def alpha_finding(history: History, selection: Selection | None) -> str:
    """Which layer's alpha rose highest, and how many were chosen."""
    last, steps = history.alpha[-1], history.outer_steps[-1]
    if max(last) == min(last):
        return f"All {len(last)} entries of alpha are the same after outer step {steps:,}"
    top = history.units[max(range(len(last)), key=last.__getitem__)]
    count = f"{chosen(selection)} chosen; layer" if selection else "Layer"
    return f"{count} {top} ends highest, at alpha {signed(max(last))}"


def gates_finding(selection: Selection) -> str:
    """How much of the gates the chosen layers hold, and the largest gate."""
    gates = dict(zip(selection.units, flatten(selection.gates or []), strict=True))
    top = max(gates, key=gates.__getitem__)
    share = sum(gate for unit, gate in gates.items() if selection.has_chosen(unit)) / (sum(gates.values()) or 1.0)
    return (
        f"{chosen(selection)} chosen, with {share:.0%} of the gates' sum; layer {top} has the largest, {gates[top]:.2f}"
    )


def loss_finding(history: History) -> str:
    """Whether the validation loss fell, from means over the first and last tenth of the last repeat's outer steps."""
    losses = history.validation_loss[history.spans[-1]]
    window = max(1, len(losses) // 10)
    ends = [losses[:window], losses[-window:]]
    if len(losses) == 1 or not all(map(math.isfinite, [*ends[0], *ends[1]])):
        return "Training and validation loss over the search"
    first, last = (sum(values) / window for values in ends)
    verb = "stays at" if f"{first:.2f}" == f"{last:.2f}" else "falls from" if last < first else "rises from"
    figures = f"{first:.2f}" if verb == "stays at" else f"{first:.2f} to {last:.2f}"
    means = f" (means of the first and last {window:,} steps)" if window > 1 else ""
    return f"Validation loss {verb} {figures}{means}"


def course_finding(courses: Mapping[str, Course]) -> str:
    """After which epoch each fine-tune's validation loss was lowest."""
    found = []
    for arm, course in courses.items():
        measured = [(loss, n) for n, loss in zip(course.epochs, course.validation_loss, strict=True)]
        measured = [pair for pair in measured if math.isfinite(pair[0])]
        if measured:
            loss, epoch = min(measured)
            found.append(f"{_FINE_TUNES[arm]} {loss:.3f} after epoch {epoch} of {course.epochs[-1]}")
    return f"Lowest validation loss: {', '.join(found)}" if found else "Training loss over the fine-tune"


def accuracy_finding(results: Results) -> str:
    """The gain of flexora, or else of the best arm, over the base model."""
    metric = results.primary_metric
    gains = [(arm, arm.over_base[metric]) for arm in results.arms if arm.over_base and metric in arm.over_base]
    if not gains:
        return f"{heading(results)} on {rows_scored(results)} {results.split} rows"
    arm, gain = next((pair for pair in gains if pair[0].name == "flexora"), None) or max(
        gains, key=lambda p: p[1].value
    )
    name = "Flexora" if arm.name == "flexora" else _SPOKEN.get(arm.name, arm.name)
    if abs(gain.value) <= _CLEAR * gain.stderr:
        return f"{name} is level with the base model in {_SPOKEN.get(metric, metric)} ({estimate(gain, sign=True)})"
    size = estimate(gain.model_copy(update={"value": abs(gain.value)}))
    if metric == "loss":
        return f"{name} {'lowers' if gain.value < 0 else 'raises'} the base model's loss by {size}"
    verb = "gains" if gain.value > 0 else "loses"
    return f"{name} {verb} {size} {_SPOKEN.get(metric, metric)} against the base model"
