"""What a fine-tune's ``target_modules`` make of a selection, by itself or from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexora.errors import FlexoraError
from flexora.search.named import resolve_selection
from flexora.search.selection import Selection, SelectionBase
from flexora.zoo.selections import zoo_selection

LLAMA = "LlamaForCausalLM"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE = SelectionBase(architecture=LLAMA, num_layers=4)
LAYERS = Selection(base=BASE, layers=[0, 2], targets={0: ["q_proj", "v_proj"], 2: ["q_proj", "v_proj"]})
UNEVEN = Selection(base=BASE, layers=[0, 2], targets={0: ["q_proj"], 2: ["v_proj"]})
MODULES = Selection(base=BASE, layers=[1], targets={1: ["v_proj"]}, projections=["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("selection", "target_modules", "expected"),
    [
        (LAYERS, None, LAYERS.targets),
        (LAYERS, ["v_proj", "q_proj"], LAYERS.targets),
        (LAYERS, "all-linear", {0: ALL, 2: ALL}),
        (LAYERS, {"o_proj"}, {0: ["o_proj"], 2: ["o_proj"]}),
        (UNEVEN, None, UNEVEN.targets),
        (UNEVEN, ["q_proj", "v_proj"], UNEVEN.targets),
        (MODULES, None, MODULES.targets),
        (MODULES, ["q_proj", "v_proj"], MODULES.targets),
    ],
)
def test_a_selection_is_adapted_where_the_adapter_says(
    selection: Selection, target_modules: list[str] | str | None, expected: dict[int, list[str]], tmp_path: Path
) -> None:
    file = selection.write(tmp_path / "selection.json")
    for given in (str(file), file, selection):
        found = resolve_selection(given, LLAMA, 4, target_modules)
        assert found.targets == expected
        assert found.model_copy(update={"targets": selection.targets}) == selection


@pytest.mark.parametrize("selection", [UNEVEN, MODULES], ids=["uneven", "module-wise"])
@pytest.mark.parametrize("target_modules", ["all-linear", ["v_proj"]], ids=str)
def test_a_choice_of_single_projections_is_not_undone(
    selection: Selection, target_modules: list[str] | str, tmp_path: Path
) -> None:
    file = str(selection.write(tmp_path / "selection.json"))
    with pytest.raises(FlexoraError, match=r"selection.json chooses single projections among q_proj, v_proj, but") as e:
        resolve_selection(file, LLAMA, 4, target_modules)
    assert "\n" not in str(e.value)


def test_a_selection_of_the_zoo_keeps_its_projections_unless_others_are_named() -> None:
    reference = "zoo:chatglm3-6b/piqa"
    own = zoo_selection(reference)
    assert own.targets[0] == ["q_proj", "k_proj", "v_proj"]  # of the fused one
    architecture, layers = own.base.architecture, own.num_layers
    assert resolve_selection(reference, architecture, layers, None) == own
    assert resolve_selection(reference, architecture, layers, own.targets[0]) == own
    fused = resolve_selection(reference, architecture, layers, "gate_up_proj")
    assert fused.targets == {layer: ["gate_up_proj"] for layer in own.layers}
