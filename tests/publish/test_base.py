"""The base model's name and licence, and the licences of rows."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from flexora.errors import FlexoraError
from flexora.packaged import MODEL_WHEEL
from flexora.publish.base import find_base, licence_for, require_name
from flexora.publish.redaction import public_arms
from flexora.publish.rows import rows_of
from flexora.search.selection import SelectionBase

LLAMA_3 = SelectionBase(architecture="LlamaForCausalLM", num_layers=32)
HUB: dict[str, Any] = {"model": "meta-llama/Meta-Llama-3-8B", "revision": None}
COMMIT = "5" * 40


def loaded(model: str) -> dict[str, Any]:
    """What PEFT writes of the model that was loaded: a whole path, or a name on the hub and its commit."""
    if model.startswith("."):
        return {"base_model_name_or_path": str(Path(model).absolute()), "revision": None}
    return {"base_model_name_or_path": model, "revision": COMMIT}


def test_a_base_model_of_the_zoo_brings_its_licence() -> None:
    base = find_base(HUB, LLAMA_3, loaded(HUB["model"]), revision="abc")
    assert (base.id, base.revision, base.licence.id, base.weights) == (HUB["model"], "abc", "llama3", None)
    assert find_base(HUB, LLAMA_3, loaded(HUB["model"])).revision == COMMIT
    require_name("me/Llama-3-8B-arc", base)
    require_name("me/llama3-arc", base)
    with pytest.raises(FlexoraError, match="begin with 'Llama 3'; call it me/Llama-3-arc-8b"):
        require_name("me/arc-8b", base)


def test_a_folder_of_chatglm_has_to_be_prepared() -> None:
    glm = SelectionBase(architecture="GlmForCausalLM", num_layers=28)
    named = find_base({"model": "chat/glm", "revision": None}, glm, loaded("./chat/glm"), named="THUDM/chatglm3-6b")
    converted = find_base({"model": "converted:chatglm3-6b", "revision": None}, glm, loaded("./cache"))
    assert named == converted
    assert (named.licence.id, named.licence.name) == ("other", "chatglm3-6b")
    assert named.prepare == "flexora convert chatglm3"


def test_packaged_weights_are_not_called_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXORA_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "SmolLM2-135M-Instruct"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    packaged = {"model": "packaged:SmolLM2-135M-Instruct", "revision": None}
    base = find_base(packaged, SelectionBase(architecture="LlamaForCausalLM", num_layers=30), loaded("./cache"))
    assert base.id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base.weights == "the Q4_1 de-quantisation of HuggingFaceTB/SmolLM2-135M-Instruct"
    for sha256 in (MODEL_WHEEL.sha256, hashlib.sha256(b"weights").hexdigest()):
        assert sha256 in base.measured


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        ({"model": "./mine"}, {}, "--base-id: the base model was the folder ./mine"),
        ({"model": "./mine"}, {"named": "../mine"}, "--base-id: Repo id must"),
        ({"model": "./mine"}, {"named": "mine"}, "--base-id: mine has no owner"),
        ({"model": "./mine"}, {"named": "meta-llama/Llama-3.2-1B"}, "LlamaForCausalLM with 16 layers, but the run's"),
        ({}, {"named": "other/model"}, "the run's base model is meta-llama/Meta-Llama-3-8B, not other/model"),
        ({"revision": "v1"}, {"revision": "v2"}, "at v1, not at v2"),
        ({}, {"licence": "mit"}, "is under llama3, which goes with its adapters; mit contradicts it"),
        ({"model": "other/model"}, {}, "--license: the zoo does not know other/model"),
        ({"model": "meta-llama/Llama-9"}, {"licence": "apache-2.0"}, "models of meta-llama are under llama2, llama3,"),
    ],
)
def test_what_a_base_model_may_not_be_called(backbone: dict[str, Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(FlexoraError, match=said):
        find_base(HUB | backbone, LLAMA_3, loaded((HUB | backbone)["model"]), **options)


def test_a_licence_that_is_the_same_is_no_contradiction() -> None:
    assert licence_for("meta-llama/Meta-Llama-3-8B", "Llama3") == licence_for("meta-llama/Meta-Llama-3-8B", None)
    assert licence_for("other/model", "MIT").id == "mit"
    # What a licence asks for goes with it, whatever the model is called.
    assert licence_for("other/llama-3-tuned", "llama3").name_prefix == "Llama 3"
    assert licence_for("zai-org/glm-4-9b-hf", None) == licence_for("THUDM/glm-4-9b-hf", None)


def data(class_path: str, source: str, **options: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": {"source": source, **options}}


def test_rows_are_those_that_were_read() -> None:
    (boolq,) = rows_of(data("flexora.data.boolq.BoolQ", "packaged"))
    assert (boolq.dataset, boolq.configuration, boolq.licence) == ("aps/super_glue", "boolq", "CC-BY-SA-3.0")
    assert boolq.official
    assert boolq.share_alike
    (siqa,) = rows_of(data("flexora.Siqa", "hub"))
    assert (siqa.dataset, siqa.licence, siqa.share_alike) == ("lighteval/siqa", "not verified", False)
    (mirror,) = rows_of(data("flexora.Piqa", "hub:someone/piqa"))
    assert (mirror.dataset, mirror.licence) == ("someone/piqa", "as its page on the hub says")
    assert not mirror.official
    (original,) = rows_of(data("flexora.JsonlMultipleChoice", "hub:allenai/ai2_arc/ARC-Easy"))
    assert original.share_alike
    assert not original.official  # another prompt
    (pinned,) = rows_of(data("flexora.JsonlMultipleChoice", "hub:allenai/ai2_arc/ARC-Easy@v1.0"))
    assert pinned == original
    # A folder may hold any rows: they are not called the benchmark's.
    (folder,) = rows_of(data("flexora.RaceHigh", "rows"))
    assert folder.dataset is None
    assert "for research only" in folder.licence
    (own,) = rows_of(data("flexora.JsonlInstruction", "rows"))
    assert (own.dataset, own.licence) == (None, "the author's own")
    mixture = rows_of(data("flexora.CommonsenseMixture", "hub", weights={"BoolQ": 1, "Piqa": 2}))
    assert [rows.name for rows in mixture] == ["BoolQ", "Piqa"]
    (theirs,) = rows_of(data("their.module.Rows", "rows"))
    assert (theirs.name, theirs.dataset) == ("Rows", None)


def test_arms_keep_different_names() -> None:
    arms = ["base", "/a/adapter", "/b/adapter/", "hf:me/arc", "flexora"]
    assert public_arms(arms) == ["base", "adapter", "adapter (2)", "hf:me/arc", "flexora"]


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        (["base", "runs/old/flexora", "lora", "flexora"], ["base", "flexora (2)", "lora", "flexora"]),
        (["flexora", "x/lora", "./base", "y/lora/"], ["flexora", "lora (2)", "base (2)", "lora (3)"]),
        (["a/x", "x", "b/zoo:x", "zoo:x"], ["x", "x (2)", "zoo:x (2)", "zoo:x"]),
    ],
)
def test_no_folder_takes_the_name_of_another_arm(arms: list[str], names: list[str]) -> None:
    """Card, table and pictures tell the figures of the arm ``flexora`` as those of the adapter that is published."""
    assert public_arms(arms) == names
