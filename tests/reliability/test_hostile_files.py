"""Selections and recipes from anyone: a valid object, or one line that says what is wrong; never a traceback."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexora.errors import FlexoraError
from flexora.recipe import RecipeParser, recipe_parser
from flexora.search.selection import Selection

#: ``make test-reliability`` takes more.
EXAMPLES = int(os.environ.get("FLEXORA_EXAMPLES", "20"))
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

SELECTION: dict[str, Any] = {
    "format_version": 1,
    "base": {"architecture": "LlamaForCausalLM", "num_layers": 4, "model": "me/model", "revision": "main"},
    "layers": [0, 2],
    "targets": {"0": ["q_proj"], "2": ["q_proj"]},
    "alpha": [0.5, -0.5, 0.1, 0.0],
    "gates": [1.0, 1.0, 1.0, 1.0],
    "rule": {"name": "Positive"},
    "stability": {"last_steps": 2, "frequency": [1.0, 0.0, 0.5, 0.0]},
    "data": {"name": "ArcEasy", "fingerprint": "0", "train_rows": 4, "validation_rows": 2},
    "seed": 3,
    "versions": {"torch": "2"},
}
RECIPE: dict[str, Any] = {
    "seed": 3,
    "output_dir": "runs/x",
    "backbone": {"model": "me/model", "dtype": "float32"},
    "data": {"class_path": "ArcEasy", "init_args": {"source": "rows", "batch_size": 4}},
    "adapter": {"class_path": "LoraConfig", "init_args": {"r": 2, "target_modules": ["q_proj"]}},
    "trainer": {"accelerator": "cpu", "devices": 1, "callbacks": [{"class_path": "LearningRateMonitor"}]},
    "search": {"outer_steps": 3, "rule": {"class_path": "TopK", "init_args": {"k": 2}}},
    "finetune": {"selection": "0,2", "adapter": {"use_dora": True}, "trainer": {"max_epochs": 1}},
    "evaluate": {"arms": ["base"]},
    "report": {"title": "a"},
}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
#: What means something to a reader of recipes.
MEANT = [
    "os.system",
    "class_path",
    "ArcEasy",
    "../x.yaml",
    "a.yaml",
    "subprocess.Popen",
    "@",
    "${x}",
    "!!python/x",
    ".",
]
keys = st.sampled_from([*SELECTION, *RECIPE, *MEANT, "init_args", "dict_kwargs", "a.b", "config", ""]) | st.text(
    max_size=6
)


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested settings."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(path for key, one in inner for path in paths(one, (*before, key)))]


def mutated(valid: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Valid settings with a few places changed, taken out, or under another name."""
    change = st.tuples(
        st.sampled_from(paths(valid)[1:]), st.sampled_from(["set", "remove", "add"]), keys, values | keys
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: apply(valid, changes))


def apply(valid: dict[str, Any], changes: list[tuple[tuple[Any, ...], str, str, Any]]) -> Any:
    found = copy.deepcopy(valid)
    for (*parents, last), does, key, value in changes:
        inner: Any = found
        try:
            for parent in parents:
                inner = inner[parent]
            if does == "remove":
                del inner[last]
            else:
                inner[key if does == "add" and isinstance(inner, dict) else last] = value
        except (KeyError, IndexError, TypeError):  # a change before took it away
            continue
    return found


def require_one_line(error: FlexoraError) -> None:
    assert str(error).isprintable()
    assert len(str(error)) < 2_000


@SETTINGS
@given(
    mutated(SELECTION).map(json.dumps).map(str.encode) | values.map(json.dumps).map(str.encode) | st.binary(max_size=80)
)
def test_any_selection(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "selection.json"
    file.write_bytes(content)
    try:
        found = Selection.read(file)
    except FlexoraError as error:
        require_one_line(error)
        return
    assert Selection.read(found.write(file)) == found
    assert set(found.targets) == set(found.layers) <= set(range(found.num_layers))


@pytest.fixture(scope="module")
def parser() -> RecipeParser:
    return recipe_parser("run")


def parsed(parser: RecipeParser, file: Path) -> None:
    try:
        parser.dump(parser.parse_args(["--config", str(file)]), skip_none=False)
    except FlexoraError as error:
        require_one_line(error)


@SETTINGS
@given(mutated(RECIPE) | st.dictionaries(keys, values | keys, max_size=4))
def test_any_recipe(parser: RecipeParser, tmp_path_factory: pytest.TempPathFactory, sections: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    parsed(parser, file)


def test_the_valid_ones_are(parser: RecipeParser, tmp_path: Path) -> None:
    file = tmp_path / "valid"
    file.write_text(json.dumps(RECIPE))
    assert parser.parse_args(["--config", str(file)]).search.outer_steps == 3
    file.write_text(json.dumps(SELECTION))
    assert Selection.read(file).layers == [0, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"seed: 1\n\tx: 2",
        b"[1, 2]",
        b"a",
        b"&a [*a]",
        b"a: &a [*a, *a]\ndata: *a",
        b"!!python/object/apply:os.system [touch ran]",
        b"data: !!python/name:os.system",
        b"a: *b",
        b"{" * 2_000,
        b"seed: 1\n---\nseed: 2\n",
        b"? [1]\n: 2",
        b"1: 2",
        b"seed: 0x" + b"f" * 6_000,
        b"data: {class_path: [ArcEasy]}",
        b"data: {class_path: {a: b}, init_args: 3}",
    ],
)
def test_what_is_no_recipe(
    content: bytes, parser: RecipeParser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(FlexoraError) as refused:
        parser.parse_args(["--config", "recipe.yaml"])
    require_one_line(refused.value)
    assert not (tmp_path / "ran").exists()
