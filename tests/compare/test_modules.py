"""The control of choices among projections, by itself and in a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.compare.modules import RandomModules
from flexora.compare.rows import ResultRow, read_lines
from flexora.compare.selectors import FromSearch, Task
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.search.rules import TopK
from flexora.search.selection import Selection, SelectionBase, Targets
from tests.compare.test_compare import in_process, write_study

LAYERS = 4
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: Adapter parameters of each projection of the tiny model at rank 2.
SIZES = dict(zip(NAMES, (128, 96, 96, 128, 160, 160, 160), strict=True))
CHOSEN: Targets = {0: ["v_proj", "down_proj"], 2: ["q_proj", "up_proj", "down_proj"], 3: ["k_proj"]}


@pytest.fixture
def task(tiny_models: dict[str, Path]) -> Callable[..., Task]:
    def make(seed: int = 0, draw: int = 0, targets: list[str] = NAMES, **found: Any) -> Task:
        module = FinetuneModule(Backbone(str(tiny_models["llama"])), LoraConfig(r=2, target_modules=targets))
        selection = Selection(
            base=SelectionBase(architecture="LlamaForCausalLM", num_layers=LAYERS),
            layers=sorted(CHOSEN),
            targets=CHOSEN,
            projections=NAMES,
            alpha=[[0.0] * len(NAMES)] * LAYERS,
        )
        return Task(LAYERS, "Tiny", seed, draw, {"modules": selection.model_copy(update=found)}, {}, module)

    return make


def size(targets: Targets) -> int:
    return sum(SIZES[name] for names in targets.values() for name in names)


def test_random_modules_have_as_many_parameters(task: Callable[..., Task]) -> None:
    control = RandomModules("modules")
    drawn = [control.choose(task(seed, draw)) for seed in range(3) for draw in range(3)]
    for targets in drawn:
        assert size(CHOSEN) - min(SIZES.values()) < size(targets) <= size(CHOSEN)
        assert list(targets) == sorted(targets)
        assert all(names == [name for name in NAMES if name in names] for names in targets.values())
    assert len({str(targets) for targets in drawn}) == len(drawn)
    assert control.choose(task(2, 2)) == drawn[-1]
    assert {name for targets in drawn for names in targets.values() for name in names} == set(NAMES)


def test_what_cannot_be_drawn_or_taken_over(task: Callable[..., Task]) -> None:
    with pytest.raises(FlexoraError, match=r"modules has no gates of projections; set its search\.gates to module"):
        RandomModules("modules").choose(task(projections=None))
    with pytest.raises(
        FlexoraError, match=r"chose among q_proj, .*, but this arm's adapter.target_modules are q_proj;"
    ):
        RandomModules("modules").choose(task(targets=["q_proj"]))
    assert FromSearch("modules").choose(task()) == CHOSEN
    with pytest.raises(FlexoraError, match="modules has gates of projections; give no rule"):
        FromSearch("modules", TopK(2)).choose(task())


def test_a_study_of_projections(recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(monkeypatch)
    adapter = {"adapter": {"init_args": {"target_modules": "all-linear"}}}
    rule = {"class_path": "Budget", "init_args": {"share": 0.4}}
    arms: dict[str, Any] = {
        "modules": {"layers": "Search", "settings": adapter | {"search": {"gates": "module", "rule": rule}}},
        "again": {"layers": {"class_path": "FromSearch", "init_args": {"arm": "modules"}}, "settings": adapter},
        "random": {"layers": {"class_path": "RandomModules", "init_args": {"like": "modules"}}, "settings": adapter},
    }
    study = write_study(tmp_path, recipe(), arms=arms, reference="modules", seeds=[0])
    assert main(["compare", "--config", str(study)]) == 0
    place = tmp_path / "study"
    rows = {row.arm: row for row in read_lines(place / "compare" / "results.csv", ResultRow)}
    chosen = {
        arm: Selection.read(place / "trials/tiny" / arm / "0" / folder / "selection.json")
        for arm, folder in (("modules", "search"), ("again", "choice"), ("random", "choice"))
    }
    assert chosen["again"].targets == chosen["modules"].targets != chosen["random"].targets
    for arm, selection in chosen.items():
        assert selection.projections == NAMES
        assert rows[arm].trainable_parameters == size(selection.targets)
    again = rows["again"].model_dump(exclude={"arm", "select_seconds", "finetune_seconds", "evaluate_seconds"})
    assert {name: getattr(rows["modules"], name) for name in again if name != "peak_memory_mb"}.items() <= again.items()
    assert 0 <= rows["modules"].trainable_parameters - rows["random"].trainable_parameters < min(SIZES.values())
