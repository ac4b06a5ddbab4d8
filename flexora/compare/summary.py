"""The findings of a study in plain words, computed from its figures: summary, caveats and the pictures' titles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flexora.compare.paired import Difference
from flexora.compare.statistics import StudyStatistics
from flexora.compare.table import points, share

_FEW_SEEDS = 5
_EQUAL = 0.05  # numbers of parameters that differ by less are called equal


def joined(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def verdict(difference: Difference) -> str:
    """``level with`` where the interval holds zero, else ``above`` or ``below``."""
    if difference.low > 0:
        return "above"
    return "below" if difference.high < 0 else "level with"


def summary(study: StudyStatistics, own: str | None, control: StudyStatistics | None) -> str:
    """One paragraph: the best arm, and what the own arm reaches against the reference and against the control.

    Args:
        study: The figures.
        own: The arm that the study is about.
        control: The figures of the own arm with a control as the reference.
    """
    means, benchmarks = study.means, study.benchmarks
    if not means:
        return "No arm has been run on every benchmark yet." if benchmarks else "No trial has been run yet."
    where = "In the mean over" if len(benchmarks) > 1 else "On"
    metric = "mean score" if len(benchmarks) > 1 else benchmarks[0].metric
    best = max(means.values(), key=lambda arm: arm.score.value)
    text = f"{where} {joined(benchmark.benchmark for benchmark in benchmarks)} "
    text += f"{best.arm} has the highest {metric} of {len(means)} arms, {share(best.score)}."
    if own is None or own not in means:
        return text
    arm, reference = means[own], means.get(study.reference)
    if reference and (difference := arm.difference):
        text += f" {own} reaches {share(arm.score)} with {arm.parameters:,.0f} trainable parameters"
        text += f", {arm.parameters / reference.parameters:.0%} of {study.reference}'s" if reference.parameters else ""
        text += f": {verdict(difference)} {study.reference} ({share(reference.score)}; {points(difference)} points)."
        text += _by_benchmark(study, own)
    if control and own in control.means and (difference := control.means[own].difference):
        other = control.means[control.reference]
        ratio = other.parameters / arm.parameters if arm.parameters else 0.0
        size = "equal parameters" if abs(ratio - 1) < _EQUAL else f"{ratio:.0%} of its parameters"
        text += f" It is {verdict(difference)} {control.reference} with {size} "
        text += f"({share(other.score)}; {points(difference)} points)."
    if reference and arm.gap and reference.gap:
        text += f" Its validation loss ends {arm.gap.value:.2f} nats above its training loss, "
        text += f"{study.reference}'s {reference.gap.value:.2f}."
    return text


def _by_benchmark(study: StudyStatistics, own: str) -> str:
    """On which of several benchmarks the own arm is above, level with, or below the reference."""
    places: dict[str, list[str]] = {"above": [], "level with": [], "below": []}
    if len(study.benchmarks) < 2:
        return ""
    for benchmark in study.benchmarks:
        if difference := benchmark.arms[own].difference:
            places[verdict(difference)].append(f"{benchmark.benchmark} ({points(difference)})")
    parts = [f"{word} it on {joined(names)}" for word, names in places.items() if names]
    return f" Benchmark by benchmark it is {'; '.join(parts)}."


def caveats(study: StudyStatistics, split_rows: Mapping[str, int]) -> list[str]:
    """What a reader must know before trusting the figures.

    Args:
        study: The figures.
        split_rows: Number of rows of each benchmark's whole split, where it is known.
    """
    notes = []
    arms = [arm for benchmark in study.benchmarks for arm in benchmark.arms.values()]
    seeds = sorted({arm.seeds for arm in arms if arm.seeds})
    if seeds[:1] == [1]:
        single = [] if seeds == [1] else list(dict.fromkeys(arm.arm for arm in arms if arm.seeds == 1))
        whose = f" of {joined(single)}" if single else ""
        notes.append(f"One seed{whose}: the intervals are over rows alone and leave out how training runs scatter.")
    elif seeds and seeds[0] < _FEW_SEEDS:
        notes.append(f"Only {seeds[0]} seeds: standard errors over them are rough themselves.")
    if developed := [part.benchmark for part in study.benchmarks if part.split == "development"]:
        notes.append(
            f"{joined(developed)}: scored on development rows, held-out training rows, not on the reported split. Such "
            "figures serve to choose between settings and favour what was chosen by them."
        )
    for part in study.benchmarks:
        if part.rows < split_rows.get(part.benchmark, 0):
            notes.append(
                f"{part.benchmark}: a cut of {part.rows:,} of the {split_rows[part.benchmark]:,} {part.split} rows was "
                "scored; the figures are not comparable with published ones on all of it."
            )
    names = dict.fromkeys(arm.arm for arm in arms)
    lacking = {name: [part.benchmark for part in study.benchmarks if name not in part.arms] for name in names}
    lines = [f"{name} on {joined(places)}" for name, places in lacking.items() if places]
    if lines:
        notes.append(f"Not run (yet): {'; '.join(lines)}. The means are of the arms that were run on every benchmark.")
    return notes


def accuracy_finding(study: StudyStatistics, own: str | None) -> str:
    """Where the own arm stands against the reference, or else which arm is best."""
    arm, reference = study.means.get(own or ""), study.means.get(study.reference)
    if arm and arm.difference and reference and reference.parameters:
        part = arm.parameters / reference.parameters
        return f"{own} is {verdict(arm.difference)} {study.reference} with {part:.0%} of its trainable parameters"
    if not study.means:
        return "Score against trainable parameters"
    return f"{max(study.means.values(), key=lambda arm: arm.score.value).arm} has the highest score"


def gap_finding(study: StudyStatistics, own: str | None) -> str:
    """The gap of the own arm beside the reference's."""
    arm, reference = study.means.get(own or ""), study.means.get(study.reference)
    if own == study.reference or not (arm and arm.gap and reference and reference.gap):
        return "Training and validation loss after the last epoch"
    gaps = f"{own} {arm.gap.value:.2f} nats, {study.reference} {reference.gap.value:.2f}"
    return f"Gap from training to validation loss: {gaps}"


def layers_finding(study: StudyStatistics, own: str | None, num_layers: int) -> str:
    """How many layers the own arm chose always and never."""
    shares = [benchmark.chosen[own] for benchmark in study.benchmarks if own in benchmark.chosen] if own else []
    if not shares:
        return "Which layers each arm chose"
    always, never = _count(shares, num_layers, 1.0), _count(shares, num_layers, 0.0)
    return f"{own} chose {always} of {num_layers} layers in every trial, and {never} in none"


def _count(shares: Sequence[Mapping[int, float]], num_layers: int, wanted: float) -> int:
    return sum(all(share.get(layer, 0.0) == wanted for share in shares) for layer in range(num_layers))
