"""The zoo: every entry is read, its counts are reproduced on models without weights, and its README is up to date."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexora.backbone.adapters import attach, trainable_parameters
from flexora.backbone.families import family_of
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.recipes import all_recipes, load_sections
from flexora.search.selection import Selection, SelectionBase
from flexora.zoo.entries import entry_names, find_entry, zoo_root
from flexora.zoo.listing import readme
from flexora.zoo.models import known_model, licence_of, model_facts
from flexora.zoo.selections import LayerList, layer_list, selection_list, zoo_selection
from tests.backbone.chatglm3_reference import CHATGLM3_6B, Reference

MODELS = entry_names("models")


@cache
def without_weights(name: str) -> PreTrainedModel:
    """A base model of the zoo at its full size, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_facts(name).config())


def lora_parameters(name: str, layers: list[int], projections: list[str], **settings: object) -> int:
    """Trainable parameters of LoRA of r 8, as PEFT puts it on the model."""
    facts = model_facts(name)
    model = without_weights(name)
    base = SelectionBase(architecture=facts.architecture, num_layers=facts.shape.num_hidden_layers)
    selection = Selection(base=base, layers=layers, targets=dict.fromkeys(layers, projections))
    adapted = attach(model, LoraConfig(r=8, **settings), selection, family_of(facts.architecture))
    count = trainable_parameters(adapted)
    adapted.unload()
    return count


@pytest.mark.parametrize("name", MODELS)
def test_facts_are_those_of_the_model(name: str) -> None:
    facts = model_facts(name)
    assert known_model(facts.id) == facts
    assert licence_of(facts).id
    family = family_of(facts.architecture)
    assert family.expand(facts.projections) == facts.projections
    model = without_weights(name)
    assert len(model.get_submodule(family.layers)) == facts.shape.num_hidden_layers
    embedding = model.get_input_embeddings().weight
    assert embedding.shape == (facts.shape.vocab_size, facts.shape.hidden_size)
    assert (model.get_output_embeddings().weight is embedding) == facts.shape.tie_word_embeddings
    assert lora_parameters(name, [0], facts.projections) == facts.lora_parameters


@cache
def fused() -> torch.nn.Module:
    """ChatGLM3-6B as its authors build it, on the meta device: its query_key_value is one projection."""
    with torch.device("meta"):
        return Reference(CHATGLM3_6B)


def fused_parameters(layers: list[int]) -> int:
    """Trainable parameters of LoRA of r 8 on the fused projection."""
    names = [name for name, _ in fused().named_modules() if name.endswith("query_key_value")]
    adapted = get_peft_model(fused(), LoraConfig(r=8, target_modules=[names[layer] for layer in layers]))
    count = trainable_parameters(adapted)
    adapted.unload()
    return count


def published() -> Iterator[tuple[str, str, str]]:
    """Every list that its authors print a number for."""
    for model in entry_names("selections"):
        for benchmark, lists in selection_list(model).lists.items():
            yield from ((model, benchmark, name) for name, found in lists.items() if found.parameters)


def count(model: str, found: LayerList) -> int:
    """Trainable parameters of a list, of the adapter that its authors used."""
    lists = selection_list(model)
    if lists.model is None:  # no model to put it on
        assert lists.per_layer is not None
        return lists.per_layer * len(found.layers)
    if lists.model == "chatglm3-6b":
        return fused_parameters(found.layers)
    projections = model_facts(lists.model).projections
    settings = {"use_dora": True} if found.adapter == "dora" else {"use_rslora": found.adapter == "rslora"}
    return lora_parameters(lists.model, found.layers, projections, **settings)


def test_the_published_counts_are_reproduced_but_for_the_marked_ones() -> None:
    names = list(published())
    assert len(names) >= 100
    marked = 0
    for model, benchmark, name in names:
        found = selection_list(model).lists[benchmark][name]
        assert (count(model, found) != found.parameters) == found.miscounted, (model, benchmark, name)
        marked += found.miscounted
    assert marked == 11


def test_the_collection_is_whole() -> None:
    lists = [found for name in entry_names("selections") for found in selection_list(name).lists.values()]
    ours = [name for name in entry_names("selections") if selection_list(name).source is None]
    own = sum(len(found) for name in ours for found in selection_list(name).lists.values())
    assert sum(map(len, lists)) - own == 132


@pytest.mark.parametrize("reference", ["zoo:llama-3-8b/hellaswag", "zoo:Llama3-8B/HellaSwag/selected"])
def test_a_selection_by_name(reference: str) -> None:
    selection = zoo_selection(reference)
    assert selection.layers == [0, 2, 3, 4, 5, 6, 14, 15, 19, 21, 23, 26, 27, 28, 29, 31]
    assert selection.base.model == "meta-llama/Meta-Llama-3-8B"
    assert set(map(tuple, selection.targets.values())) == {("q_proj", "v_proj")}
    fused = zoo_selection("zoo:chatglm3-6b/piqa/test")
    assert fused.targets[0] == ["q_proj", "k_proj", "v_proj"]
    assert layer_list("llama-3-8b/piqa/lora-drop")[1].method == "lora-drop"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("zoo:llama9/piqa", "the zoo has no selection 'llama9'"),
        ("zoo:../models/yi-6b/piqa", "the zoo has no selection '..'"),
        ("zoo:yi-6b", "yi-6b has lists for hellaswag, piqa, race, winogrande"),
        ("zoo:yi-6b/race/best", "yi-6b/race has selected"),
        (
            "zoo:xuanyuan/piqa",
            "is no model that flexora can load; if these layers suit yours, name them: --sel",
        ),
    ],
)
def test_unknown_names_are_refused_in_one_line(reference: str, expected: str) -> None:
    with pytest.raises(FlexoraError) as refused:
        zoo_selection(reference)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_two_entries_have_one_name() -> None:
    for kind in ("models", "selections", "adapters"):
        for name in entry_names(kind):
            assert find_entry(kind, name) == name


def test_every_model_of_a_recipe_is_known() -> None:
    for recipe in (recipe for recipe in all_recipes() if not recipe.is_study):
        model = load_sections(recipe.path)["backbone"]["model"]
        if "/" in recipe.name and not model.startswith("packaged:"):
            assert known_model(model) is not None, recipe.name


def test_the_readme_is_up_to_date() -> None:
    written = (zoo_root() / "README.md").read_text()
    assert written == readme(), "run: python -m flexora.zoo.listing"


def test_ls_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "ls"]) == 0
    shown = capsys.readouterr().out
    for name in ("llama-3-8b/hellaswag", "chatglm3-6b", "16 of 32"):
        assert name in shown
    assert main(["zoo", "ls", "adapters"]) == 0
    assert "llama-3-8b" not in capsys.readouterr().out
    assert main(["zoo", "show", "zoo:yi-6b/race"]) == 0
    assert "layers: 1,3,5,6,7,9,11,12,13,14,17,21" in capsys.readouterr().out
    assert main(["zoo", "show", "yi-6b"]) == 0
    shown = capsys.readouterr().out
    assert "# models/yi-6b.yaml" in shown
    assert "# selections/yi-6b.yaml" in shown
    assert main(["zoo", "show", "nothing"]) == 2
    assert "the zoo has no entry 'nothing'" in capsys.readouterr().err
