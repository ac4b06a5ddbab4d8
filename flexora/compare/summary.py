"""The findings of a study in plain words, computed from its figures: summary, caveats and the pictures' titles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flexora.compare.paired import Difference, Mean
from flexora.compare.statistics import ArmStatistics, StudyStatistics, lower_is_better
from flexora.compare.table import share, signed, unit

_FEW_SEEDS = 5
_CLEAR = 2.0  # standard errors over seeds; fewer do not tell two arms apart
_EQUAL = 0.05  # numbers of parameters that differ by less are called equal


def joined(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def verdict(difference: Difference | Mean, metric: str | None) -> str:
    """How an arm stands to another, in words that the other's name follows.

    ``above`` or ``below``, of a loss ``worse than`` or ``better than``; ``not told apart from`` where the interval
    holds zero, which is two standard errors to each side of a difference paired by seed; ``not judged against`` where
    that has one seed.
    """
    if isinstance(difference, Difference):
        low, high = difference.low, difference.high
    elif difference.stderr is None:
        return "not judged against"
    else:
        reach = _CLEAR * difference.stderr
        low, high = difference.value - reach, difference.value + reach
    if low <= 0 <= high:
        return "not told apart from"
    if lower_is_better(metric):
        return "worse than" if low > 0 else "better than"
    return "above" if low > 0 else "below"


def _best(study: StudyStatistics) -> tuple[ArmStatistics, str]:
    """The arm with the best mean over the seeds that it shares with the reference, and which end that is."""
    reference = study.means.get(study.reference)

    def mean(arm: ArmStatistics) -> float:
        return reference.score.value + arm.difference.value if reference and arm.difference else arm.score.value

    if lower_is_better(study.metric):
        return min(study.means.values(), key=mean), "lowest"
    return max(study.means.values(), key=mean), "highest"


def summary(study: StudyStatistics, own: str | None, control: StudyStatistics | None) -> str:
    """One paragraph: the best arm, and what the own arm reaches against the reference and against the control.

    This for each benchmark, where they cannot be averaged.

    Args:
        study: The figures.
        own: The arm that the study is about.
        control: The figures of the own arm with a control as the reference.
    """
    means, benchmarks, metric = study.means, study.benchmarks, study.metric
    if metric is None:
        places = [part.benchmark for part in benchmarks]
        return " ".join(summary(study.of(place), own, control.of(place) if control else None) for place in places)
    if not means:
        return "No arm has been run on every benchmark yet." if benchmarks else "No trial has been run yet."
    where = "In the mean over" if len(benchmarks) > 1 else "On"
    named = f"mean {metric}" if len(benchmarks) > 1 else metric
    best, end = _best(study)
    text = f"{where} {joined(benchmark.benchmark for benchmark in benchmarks)} "
    text += f"{best.arm} has the {end} {named} of {len(means)} arms, {share(best.score)}."
    if own is None or own not in means:
        return text
    arm, reference = means[own], means.get(study.reference)
    if reference and (difference := arm.difference):
        text += f" {own} reaches {share(arm.score)} with {arm.parameters:,.0f} trainable parameters"
        text += f", {arm.parameters / reference.parameters:.0%} of {study.reference}'s" if reference.parameters else ""
        text += f": {verdict(difference, metric)} {study.reference} "
        text += f"({share(reference.score)}; {signed(difference, metric)} {unit(metric)})."
        text += _by_benchmark(study, own)
    if control and own in control.means and (difference := control.means[own].difference):
        other = control.means[control.reference]
        ratio = other.parameters / arm.parameters if arm.parameters else 0.0
        size = "as many parameters" if abs(ratio - 1) < _EQUAL else f"{ratio:.0%} of {own}'s parameters"
        text += f" {own} is {verdict(difference, metric)} {control.reference}, which has {size} "
        text += f"({share(other.score)}; {signed(difference, metric)} {unit(metric)})."
    if reference and arm.gap and reference.gap:
        text += f" {own}'s validation loss ends {arm.gap.value:.2f} nats above its training loss, "
        text += f"{study.reference}'s {reference.gap.value:.2f}."
    return text


def _by_benchmark(study: StudyStatistics, own: str) -> str:
    """How the own arm stands to the reference on each of several benchmarks."""
    if len(study.benchmarks) < 2:
        return ""
    places: dict[str, list[str]] = {}
    for part in study.benchmarks:
        if difference := part.arms[own].difference:
            shown = f"{part.benchmark} ({signed(difference, part.metric)})"
            places.setdefault(verdict(difference, part.metric), []).append(shown)
    parts = [f"{word} {study.reference} on {joined(names)}" for word, names in places.items()]
    return f" Benchmark by benchmark {own} is {'; '.join(parts)}."


def caveats(study: StudyStatistics, split_rows: Mapping[str, int]) -> list[str]:
    """What a reader must know before trusting the figures.

    Args:
        study: The figures.
        split_rows: Number of rows of each benchmark's whole split, where it is known.
    """
    notes = []
    arms = [arm for benchmark in study.benchmarks for arm in benchmark.arms.values()]
    seeds = sorted({arm.seeds for arm in arms if arm.seeds})
    by_seed = [
        part.benchmark
        for part in study.benchmarks
        if any(isinstance(arm.difference, Mean) for arm in part.arms.values())
    ]
    if seeds[:1] == [1]:
        single = [] if seeds == [1] else list(dict.fromkeys(arm.arm for arm in arms if arm.seeds == 1))
        whose = f" of {joined(single)}" if single else ""
        intervals = len(by_seed) < len(study.benchmarks)
        told = "the intervals are over rows alone and leave out" if intervals else "nothing tells"
        notes.append(f"One seed{whose}: {told} how training runs scatter.")
    elif seeds and seeds[0] < _FEW_SEEDS:
        notes.append(
            f"Only {seeds[0]} seeds: standard errors over them are rough themselves, and intervals are too narrow "
            "where training runs scatter widely."
        )
    if len(seeds) > 1:
        fewer = list(dict.fromkeys(arm.arm for arm in arms if 0 < arm.seeds < seeds[-1]))
        notes.append(
            f"{joined(fewer)}: fewer seeds than others on some benchmark. Scores and losses are over an arm's own "
            f"seeds, differences over those that it shares with {study.reference}: it is the latter that compare."
        )
    if by_seed:
        notes.append(
            f"{joined(by_seed)}: outcomes.csv tells no right and wrong rows, so differences are paired by seed. Their "
            "standard errors leave out which rows were scored; with one seed they have none and are not judged."
        )
    if study.metric is None:
        kinds = joined(f"{part.metric} on {part.benchmark}" for part in study.benchmarks)
        notes.append(f"No means over the benchmarks: losses and shares of right answers are unlike ({kinds}).")
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
        means = " The means are of the arms that were run on every benchmark." if study.means else ""
        notes.append(f"Not run (yet): {'; '.join(lines)}.{means}")
    return notes


def accuracy_finding(study: StudyStatistics, own: str | None) -> str:
    """Where the own arm stands against the reference, or else which arm is best."""
    arm, reference = study.means.get(own or ""), study.means.get(study.reference)
    if arm and arm.difference and reference and reference.parameters:
        part = arm.parameters / reference.parameters
        word = verdict(arm.difference, study.metric)
        return f"{own} is {word} {study.reference} with {part:.0%} of its trainable parameters"
    if not study.means:
        return "Score against trainable parameters"
    best, end = _best(study)
    return f"{best.arm} has the {end} {'loss' if lower_is_better(study.metric) else 'score'}"


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
