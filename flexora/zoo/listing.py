"""The zoo as tables: for the terminal, and for ``model_zoo/README.md``, which is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flexora.files import write_atomically
from flexora.scoring.results import Estimate
from flexora.zoo.adapters import adapter_record
from flexora.zoo.entries import entry_names, zoo_root
from flexora.zoo.models import licence_of, model_facts
from flexora.zoo.selections import DEFAULT, selection_list

#: How a chosen and another layer look in a strip.
MARKS = ("█", "░")

README = """\
# Model zoo

Selections and adapters to reuse, and what flexora knows of base models. Written by `python -m flexora.zoo.listing`
from the files beside it; `flexora zoo ls` shows the same, `flexora zoo show NAME` an entry.

```console
flexora finetune --config mine.yaml --selection zoo:llama-3-8b/hellaswag     # layers from here, no search
flexora evaluate --config mine.yaml --adapter zoo:NAME                       # an adapter from here
flexora finetune --config mine.yaml --selection hf:user/repo                 # layers from the hub
```
"""


@dataclass(frozen=True)
class Listing:
    """A table: its name, what it is, its head and its rows of plain text."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """The table for a README."""
        lines = [f"| {' | '.join(self.header)} |", f"|{'---|' * len(self.header)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return f"## {self.name.capitalize()}\n\n{self.title}\n\n" + "\n".join(lines) + "\n"


def strip(layers: list[int], num_layers: int, marks: tuple[str, str] = MARKS) -> str:
    """A character for each decoder layer, from the first to the last: chosen or not."""
    return "".join(marks[layer not in layers] for layer in range(num_layers))


def models() -> Listing:
    """The base models whose facts are known."""
    rows: list[tuple[str, ...]] = []
    for name in entry_names("models"):
        facts = model_facts(name)
        licence = licence_of(facts)
        said = (licence.name or licence.id) + (", gated" * facts.gated)
        rows.append((name, facts.id, str(facts.shape.num_hidden_layers), f"{facts.lora_parameters:,}", said))
    return Listing(
        "models",
        "Base models, as their published configurations describe them (none was fetched here, no commit is pinned). "
        "LoRA is counted for r 8 on the projections that a model adapts by default: query and value, of ChatGLM3 the "
        "key too.",
        ("model", "hub id", "layers", "LoRA a layer", "licence"),
        rows,
    )


def selections(marks: tuple[str, str] = MARKS) -> Listing:
    """The lists of layers, one row a benchmark: the one that is selected, and the names of the others."""
    return Listing(
        "selections",
        "Layers by model and benchmark, first to last: published by the paper's authors in the comments of their code "
        "(github.com/kithib/Flexora and kithib/PAFT), or, with a star, found here. Eleven numbers of parameters that "
        "the authors print are not those of their lists; the files mark them.",
        ("selection", "layers", "which", "other lists"),
        list(_selection_rows(marks)),
    )


def adapters() -> Listing:
    """The published adapters with what they reached."""
    rows: list[tuple[str, ...]] = []
    for name in entry_names("adapters"):
        record = adapter_record(name)
        scores = "; ".join(
            f"{score.arm} {', '.join(f'{metric} {_share(value)}' for metric, value in score.metrics.items())}"
            for score in record.scores
        )
        measured = f"{record.benchmark}, {record.split} split, {record.rows:,} of {record.split_rows:,} rows"
        rows.append((name, record.base.measured, str(len(record.layers)), f"{measured}, seed {record.seed}: {scores}"))
    return Listing(
        "adapters",
        "Adapters to evaluate or to use; ± is one standard error over the rows.",
        ("adapter", "base", "layers", "measured"),
        rows,
    )


def readme() -> str:
    """The text of ``model_zoo/README.md``."""
    return "\n".join([README, *(listing.markdown() for listing in (models(), selections(), adapters()))])


def _selection_rows(marks: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    for name in entry_names("selections"):
        entry = selection_list(name)
        layers = model_facts(entry.model).shape.num_hidden_layers if entry.model else None
        for benchmark, lists in entry.lists.items():
            chosen = lists.get(DEFAULT)
            others = ", ".join(other for other in lists if other != DEFAULT)
            number, picture = "", ""
            if chosen is not None:
                number = f"{len(chosen.layers)} of {layers or '?'}"
                picture = strip(chosen.layers, layers or chosen.layers[-1] + 1, marks)
            own = "" if entry.source else " *"
            yield (f"{name}/{benchmark}{own}", number, picture, others)


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ± {estimate.stderr:.3f}"


if __name__ == "__main__":
    print(write_atomically(zoo_root() / "README.md", readme()))
