"""What chooses the layers of controls."""

from __future__ import annotations

import pytest

from flexora.compare.selectors import (
    AllLayers,
    FirstLayers,
    FromSearch,
    LastLayers,
    LayerSelector,
    RandomLayers,
    Scored,
    SpreadLayers,
    Task,
)
from flexora.errors import FlexoraError
from flexora.search.rules import TopK
from flexora.search.selection import Selection, SelectionBase

FOUND = Selection(
    base=SelectionBase(architecture="LlamaForCausalLM", num_layers=6),
    layers=[1, 3, 4],
    targets={1: ["q_proj"], 3: ["q_proj"], 4: ["q_proj"]},
    alpha=[-0.3, 0.3, -0.2, 0.1, 0.2, -0.1],
)


def task(seed: int = 0, draw: int = 0, benchmark: str = "Tiny") -> Task:
    return Task(6, benchmark, seed, draw, {"Flexora": FOUND}, {})


class Given(Scored):
    """Scores that are known."""

    def scores(self, task: Task) -> list[float]:
        return [0.1, 0.5, 0.2, 0.5, 0.9, 0.0]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (AllLayers(), [0, 1, 2, 3, 4, 5]),
        (FirstLayers(k=2), [0, 1]),
        (FirstLayers(like="Flexora"), [0, 1, 2]),
        (LastLayers(like="Flexora"), [3, 4, 5]),
        (LastLayers(k=6), [0, 1, 2, 3, 4, 5]),
        (SpreadLayers(k=3), [0, 2, 4]),
        (SpreadLayers(k=4), [0, 1, 3, 4]),
        (FromSearch("Flexora"), [1, 3, 4]),
        (FromSearch("Flexora", TopK(2)), [1, 4]),
        (Given(k=2), [1, 4]),
    ],
)
def test_choices(selector: LayerSelector, expected: list[int]) -> None:
    assert selector.choose(task()) == expected


def test_random_layers_are_others_for_each_trial() -> None:
    selector = RandomLayers(like="Flexora")
    assert selector.choose(task(1, 2)) == selector.choose(task(1, 2))
    chosen = {tuple(selector.choose(task(seed, draw))) for seed in range(6) for draw in range(6)}
    assert len(chosen) > 12  # of 20
    others = [selector.choose(task(seed, 0, name)) for seed in range(4) for name in ("Tiny", "Other")]
    assert any(one != other for one, other in zip(others[::2], others[1::2], strict=True))
    assert all(sorted(set(layers)) == list(layers) and len(layers) == 3 for layers in chosen)


def test_what_is_refused() -> None:
    with pytest.raises(FlexoraError, match="LastLayers: 7 layers are asked for of 6"):
        LastLayers(k=7).choose(task())
    with pytest.raises(FlexoraError, match="needs either k or like"):
        FirstLayers(k=2, like="Flexora")
    single = FOUND.model_copy(update={"projections": ["q_proj"]})
    with pytest.raises(FlexoraError, match="LastLayers: Flexora has gates of projections"):
        LastLayers(like="Flexora").choose(Task(6, "Tiny", 0, 0, {"Flexora": single}, {}))
    bare = FOUND.model_copy(update={"alpha": None})
    with pytest.raises(FlexoraError, match="FromSearch: Flexora has no alpha; name an arm with Search"):
        FromSearch("Flexora").choose(Task(6, "Tiny", 0, 0, {"Flexora": bare}, {}))


def test_a_selector_is_described_by_its_settings() -> None:
    assert FromSearch("Flexora", TopK(2)).describe() == {
        "name": "FromSearch",
        "arm": "Flexora",
        "rule": {"name": "TopK", "k": 2},
    }
