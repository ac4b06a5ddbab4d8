"""Study recipes: what they hold, the trials they make, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flexora.compare.selectors import AllLayers
from flexora.compare.study import Study, Trial, instantiated, make_study, matching, merged, slug, study_parser
from flexora.errors import FlexoraError

ARMS: dict[str, Any] = {
    "base": {"layers": "NoLayers"},
    "LoRA": {"layers": "AllLayers", "learning_rates": [0.01, 0.03]},
    "Flexora": {"layers": "Search", "learning_rate_of": "LoRA"},
    "random": {"layers": {"class_path": "RandomLayers", "init_args": {"like": "Flexora"}}, "draws": 2},
}


def study(tmp_path: Path, **changed: Any) -> Study:
    """A study of four arms on two benchmarks."""
    sections: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "recipes": {"ARC-Easy": "demo", "PIQA": "llama/smollm2-135m-instruct/piqa"},
        "settings": {"data": {"init_args": {"train_rows": 24}}, "search": {"estimator": "FirstOrder"}},
        "seeds": [0, 1],
        "arms": ARMS,
        "reference": "LoRA",
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(sections | changed, sort_keys=False))
    return make_study(instantiated(study_parser(), ["--config", str(file)]))


def test_trials_go_seed_by_seed_and_the_base_has_none(tmp_path: Path) -> None:
    trials = study(tmp_path).trials
    names = [str(trial) for trial in trials]
    own = ["base/0", "lora/0", "flexora/0", "random/0", "random/0-1"]
    first = [f"{benchmark}/{name}" for benchmark in ("arc-easy", "piqa") for name in own]
    assert names[:10] == first
    assert names[10:] == [name.replace("/0", "/1") for name in first if "base" not in name]
    assert [str(trial) for trial in matching(trials, ["piqa/*/1*"])] == names[14:]
    assert list(matching(trials, [])) == trials


def test_a_trial_needs_what_it_takes_from_others(tmp_path: Path) -> None:
    made = study(tmp_path)
    assert made.needs(Trial("PIQA", "random", 1, 1)) == [Trial("PIQA", "Flexora", 1)]
    assert made.needs(Trial("PIQA", "Flexora", 1)) == [Trial("PIQA", "LoRA", 0)]
    assert made.needs(Trial("PIQA", "LoRA", 1)) == [Trial("PIQA", "LoRA", 0)]
    assert made.needs(Trial("PIQA", "LoRA", 0)) == []


def test_arms_beside_tuned_ones_that_are_not(tmp_path: Path) -> None:
    own = {"own": {"layers": "AllLayers", "settings": {"finetune": {"learning_rate": 0.1}}}}
    assert study(tmp_path, arms=ARMS | own).untuned == ["random"]
    assert study(tmp_path, arms={"LoRA": {"layers": "AllLayers"}, "two": {"layers": "Search"}}).untuned == []


class Keeper(AllLayers):
    """A selector that keeps what no file can hold."""

    def __init__(self) -> None:
        self.kept = {1, 2}


def test_a_selector_that_cannot_be_written_down_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AllLayers, "describe", Keeper().describe)
    with pytest.raises(FlexoraError, match=r"arms\.LoRA\.layers: what AllLayers keeps is not all JSON .*set"):
        study(tmp_path)


def test_seeds_draw_their_own_rows(tmp_path: Path) -> None:
    trial = Trial("ARC-Easy", "Flexora", 1)
    settings = study(tmp_path).settings_of(trial)
    assert settings["data"] == {"init_args": {"train_rows": 24, "train_seed": 1}}
    assert settings["seed"] == 1
    assert settings["output_dir"] == str(tmp_path / "out" / "trials" / "arc-easy" / "flexora" / "1")
    assert study(tmp_path, resample=False).settings_of(trial)["data"] == {"init_args": {"train_rows": 24}}


def test_settings_of_another_class_are_not_mixed_in() -> None:
    rule = {"class_path": "TopK", "init_args": {"k": 3}}
    assert merged({"rule": rule}, {"rule": {"init_args": {"k": 4}}})["rule"]["init_args"] == {"k": 4}
    other = {"class_path": "Threshold", "init_args": {"value": 0.1}}
    assert merged({"rule": rule, "steps": 2}, {"rule": other}) == {"rule": other, "steps": 2}
    assert merged({"rule": "Positive"}, {"rule": other})["rule"] == other
    full = {"class_path": "flexora.search.rules.TopK", "init_args": {}}  # the same one
    assert merged({"rule": rule}, {"rule": full})["rule"]["init_args"] == {"k": 3}


def test_settings_stay_as_they_are_written(tmp_path: Path) -> None:
    search = {"search": {"estimator": {"class_path": "flexora.search.estimators.FirstOrder"}}}  # not its short name
    trainer = {"trainer": {"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]}}
    made = study(tmp_path, settings=trainer, arms=ARMS | {"full": {"layers": "Search", "settings": search}})
    assert (made.settings, made.arms["full"].settings) == (trainer, search)


def test_a_recipe_that_is_not_there_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path, recipes={"own": "own.yaml", "PIQA": "llama/smollm2-135m-instruct/piqa"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlexoraError, match=rf"^recipes: {tmp_path}/own.yaml is no file, .* no own.yaml; mend"):
        made.base_recipe(made.trials[0])
    (tmp_path / "own.yaml").touch()
    assert made.base_recipe(made.trials[0]) == Path("own.yaml")


def test_draws_need_the_tuning_of_the_first(tmp_path: Path) -> None:
    arms = ARMS | {"random": ARMS["random"] | {"learning_rates": [0.1, 0.2]}}
    made = study(tmp_path, arms=arms)
    first = Trial("PIQA", "random", 0)
    assert made.needs(Trial("PIQA", "random", 0, 1)) == [Trial("PIQA", "Flexora", 0), first]
    assert made.needs(first) == [Trial("PIQA", "Flexora", 0)]


def test_patterns_know_draws_by_the_name_of_the_first(tmp_path: Path) -> None:
    found = matching(study(tmp_path).trials, ["piqa/random/0"])
    assert [trial.draw for trial in found] == [0, 1]


def test_names_of_folders() -> None:
    assert slug("Зима, 2") == "зима-2"
    assert slug("LoRA q,v") == "lora-q-v"
    assert str(Trial("ARC-Easy", "Flexora, first order", 2, 1)) == "arc-easy/flexora-first-order/2-1"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"arms": {}}, "arms: the study has none"),
        ({"recipes": {}}, "recipes: the study has none"),
        ({"seeds": [1, 1]}, "seeds: two have the same folder name"),
        ({"arms": ARMS | {"lora": {"layers": "AllLayers"}}}, "arms: two have the same folder name"),
        ({"reference": "Lora"}, "reference: 'Lora' is no arm; name one of base, LoRA"),
        ({"arms": ARMS | {"x": {"layers": "AllLayers", "learning_rate_of": "y"}}}, "arms.x: 'y' is no other arm"),
        ({"arms": ARMS | {"x": {"layers": "AllLayers", "draws": 0}}}, "arms.x.draws: 0 is too small"),
        ({"arms": ARMS | {"x": {"layers": "Alllayers"}}}, "Alllayers"),
        ({"arms": ARMS | {"x": {"layers": "RandomLayers"}}}, "RandomLayers needs either k or like"),
        ({"arms": ARMS | {"x": {"layer": "AllLayers"}}}, "arms"),
        ({"arm": {"x": 1}}, "arm"),
        ({"settings": None}, "compare: settings: here is nothing"),
        ({"arms": ARMS | {"x": {"layers": "AllLayers", "settings": None}}}, "arms.x.settings: here is nothing"),
        ({"arms": ARMS | {"+": {"layers": "AllLayers"}}}, "arms: a name has neither letters nor digits"),
        (
            {
                "arms": ARMS
                | {
                    name: {"layers": {"class_path": "FirstLayers", "init_args": {"like": other}}}
                    for name, other in (("x", "y"), ("y", "x"))
                }
            },
            "arms: .* need each other",
        ),
    ],
)
def test_what_is_refused(changed: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(FlexoraError, match=expected.replace("(", r"\(")) as refused:
        study(tmp_path, **changed)
    assert "\n" not in str(refused.value)
