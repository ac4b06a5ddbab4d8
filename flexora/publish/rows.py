"""The rows that a run was trained and evaluated on: where the hub has them, and under which licence they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexora.data import benchmarks
from flexora.data.mixture import CommonsenseMixture
from flexora.data.sources import HUB_PREFIX, Source, hub_names, hub_revision
from flexora.trust import known_class

SHARE_ALIKE = "-SA-"


@dataclass(frozen=True)
class Rows:
    """The rows of one benchmark, or of the user's own.

    Attributes:
        name: The benchmark's name.
        dataset: Dataset id on the hub; none for files of the user's.
        configuration: The dataset's configuration, where it has several.
        task: What lm-evaluation-harness calls the benchmark, or the hub the dataset's configuration.
        licence: Licence in words.
        official: Whether they are the benchmark's own rows, and not ones that the user has put in their place.
    """

    name: str
    dataset: str | None
    configuration: str | None
    task: str
    licence: str
    official: bool = False

    @property
    def share_alike(self) -> bool:
        """Whether what is made of the rows may have to be under the same licence."""
        return SHARE_ALIKE in self.licence


def rows_of(data: dict[str, Any]) -> list[Rows]:
    """The rows that a data section names; those of a mixture are several.

    Args:
        data: ``class_path`` and ``init_args``.
    """
    name = data["class_path"].rpartition(".")[2]
    data_class = known_class(data["class_path"])
    arguments = data["init_args"]
    members: Sequence[Any] = [data_class]
    if isinstance(data_class, type) and issubclass(data_class, CommonsenseMixture):
        weights = arguments.get("weights")
        members = [member for member in data_class.members if weights is None or weights.get(member.__name__)]
    source = str(arguments.get("source") or "hub")
    return [_rows(member, getattr(member, "__name__", name), source) for member in members]


def _rows(data_class: Any, name: str, source: str) -> Rows:
    benchmark = getattr(data_class, "benchmark", Source(hub=None, fields=()))
    own = benchmark.licence or "not verified"
    dataset: tuple[str, ...] | None = None
    if source.startswith(HUB_PREFIX):
        dataset = hub_names(source)
        licence = _known_licence(dataset[0]) or "as its page on the hub says"
    elif source in ("hub", "packaged"):
        dataset, licence = benchmark.hub, own
    elif benchmark.hub:
        # A folder in a benchmark's fields may hold other rows: the benchmark's name is not claimed for them.
        licence = f"a folder of the author's own; {name}'s own rows: {own}"
    else:
        licence = "the author's own"
    configuration = dataset[1] if dataset and len(dataset) > 1 else None
    task = getattr(data_class, "referee", None) or configuration or "default"
    # The hub files a score under the dataset as it is today.
    official = dataset is not None and dataset == benchmark.hub and hub_revision(source) is None
    return Rows(name, dataset[0] if dataset else None, configuration, task, licence, official)


def _known_licence(dataset: str) -> str | None:
    """The licence of a dataset of the hub that one of the benchmarks is read from."""
    known = (getattr(benchmarks, name) for name in benchmarks.__all__)
    sources: list[Source] = [kind.benchmark for kind in known if hasattr(kind, "benchmark")]
    return next((source.licence for source in sources if source.hub and source.hub[0] == dataset), None)


def is_folder(source: str) -> bool:
    """Whether a source is a place on the user's machine."""
    return source not in ("hub", "packaged") and not source.startswith(HUB_PREFIX)


def public_source(source: str) -> str:
    """A source as others may see it: of a folder its last name."""
    return Path(source).name if is_folder(source) else source
