"""Selections of the zoo: the lists that the paper's authors published, and our own."""

from __future__ import annotations

from typing import Literal, Self, TypeVar

from pydantic import Field, PositiveInt, model_validator

from flexora.errors import FlexoraError
from flexora.search.selection import Selection, SelectionBase
from flexora.zoo.entries import PREFIX, Entry, entry_file, plain, read_entry
from flexora.zoo.models import model_facts

#: The list that is meant where a name says none.
DEFAULT = "selected"

Found = TypeVar("Found")


class Source(Entry):
    """Where lists were published; the line of each is its own."""

    repository: str
    commit: str
    file: str


class LayerList(Entry):
    """One list of layers.

    Attributes:
        layers: Decoder layers, 0-based, sorted.
        method: How they were found: by Flexora's search, at random, or by LoRA-drop.
        adapter: What they were found for, and are counted in.
        parameters: Trainable parameters as the authors print them.
        miscounted: Whether that number is not the list's.
        line: Line of the source file.
        recipe: The recipe that found them, where the list is our own.
        seed: The seed of that search.
        note: What else a reader should know.
    """

    layers: list[int] = Field(min_length=1)
    method: Literal["flexora", "random", "lora-drop"] = "flexora"
    adapter: Literal["lora", "dora", "rslora"] = "lora"
    parameters: PositiveInt | None = None
    miscounted: bool = False
    line: PositiveInt | None = None
    recipe: str | None = None
    seed: int | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _sorted_and_distinct(self) -> Self:
        if self.layers != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError("layers must be sorted, free of repeats, and not negative")
        return self


class SelectionList(Entry):
    """The lists of one model.

    Attributes:
        title: The model, as its authors name it.
        model: Its name among the zoo's models; none where it is not known, or not supported.
        per_layer: LoRA parameters of a decoder layer that the printed numbers are counted in.
        source: Where the lists are from; none for our own.
        lists: Benchmark -> name of the list -> the list.
        note: What else a reader should know.
    """

    title: str
    model: str | None = None
    per_layer: PositiveInt | None = None
    source: Source | None = None
    lists: dict[str, dict[str, LayerList]]
    note: str | None = None

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        layers = model_facts(self.model).shape.num_hidden_layers if self.model else None
        for benchmark, lists in self.lists.items():
            for name, found in lists.items():
                if layers is not None and found.layers[-1] >= layers:
                    raise ValueError(f"{benchmark}/{name}: {self.model} has no layer {found.layers[-1]}")
        return self


def selection_list(model: str) -> SelectionList:
    """The lists of a model by its name in the zoo.

    Raises:
        FlexoraError: If the zoo has none for it, or the entry is broken.
    """
    return read_entry(SelectionList, entry_file("selections", model))


def layer_list(name: str) -> tuple[SelectionList, LayerList]:
    """A list by its name: ``MODEL/BENCHMARK``, or ``MODEL/BENCHMARK/LIST`` for another than the one selected.

    Raises:
        FlexoraError: If there is none of that name; the line says which there are.
    """
    model, _, rest = name.partition("/")
    benchmark, _, chosen = rest.partition("/")
    lists = selection_list(model)
    of_benchmark = _look_up(lists.lists, benchmark, f"no selection {name!r}: {model} has lists for")
    return lists, _look_up(of_benchmark, chosen or DEFAULT, f"no selection {name!r}: {model}/{benchmark} has")


def zoo_selection(reference: str) -> Selection:
    """The selection that ``zoo:MODEL/BENCHMARK[/LIST]`` names, on the projections that the model adapts by default.

    Raises:
        FlexoraError: If there is none of that name, or it is not known which model its layers are of.
    """
    name = reference.removeprefix(PREFIX)
    lists, found = layer_list(name)
    if lists.model is None:
        layers = ",".join(map(str, found.layers))
        raise FlexoraError(
            f"{reference}: {lists.title} is no model that flexora can load; if these layers suit yours, name them: "
            f"--selection {layers}"
        )
    facts = model_facts(lists.model)
    return Selection(
        base=SelectionBase(
            architecture=facts.architecture,
            num_layers=facts.shape.num_hidden_layers,
            model=facts.id,
            revision=facts.revision,
        ),
        layers=found.layers,
        targets=dict.fromkeys(found.layers, facts.projections),
    )


def _look_up(entries: dict[str, Found], name: str, otherwise: str) -> Found:
    for known, entry in entries.items():
        if plain(known) == plain(name):
            return entry
    raise FlexoraError(f"the zoo has {otherwise} {', '.join(entries)}")
