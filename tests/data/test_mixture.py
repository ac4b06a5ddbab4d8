"""The commonsense mixture: all rows or weighed shares, no row of any reported split, and results one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from flexora.backbone.loading import Backbone
from flexora.data.mixture import CommonsenseMixture
from flexora.errors import FlexoraError
from tests.data.test_benchmarks import GOLDEN
from tests.data.test_hygiene import other
from tests.tiny import write_jsonl

ROWS = 6


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of all eight benchmarks."""
    return commonsense_folder(tmp_path)


def commonsense_folder(root: Path) -> Path:
    """Write a few train rows and one reported row of all eight benchmarks."""
    for member in CommonsenseMixture.members:
        place = root / member.__name__
        place.mkdir(parents=True)
        row, rows = GOLDEN[member].row, []
        for _ in range(ROWS):
            row = other(member, row)
            rows.append(row)
        write_jsonl(place / "train.jsonl", rows)
        write_jsonl(place / f"{member.reported_split}.jsonl", [GOLDEN[member].row])
    return root


def test_all_rows_of_all_benchmarks(folder: Path, tiny_models: dict[str, Path]) -> None:
    data = CommonsenseMixture(Backbone(str(tiny_models["llama"])), str(folder), validation_rows=9)
    # ARC easy and challenge have the same golden row here: each loses what the other reports, and that is none.
    assert len(data.train_split) == 8 * ROWS
    assert len(data.train_set) == 8 * ROWS - 9
    # Their other rows are the same too: one of the nine that are held out of one is trained on in the other.
    assert len(data.validation_set) == 8
    assert [part.benchmark_name for part in data.parts] == [member.__name__ for member in data.members]
    assert [len(part.reported_set) for part in data.parts] == [1] * 8
    data.check_source()


def test_a_row_that_another_benchmark_reports_is_left_out(
    folder: Path, tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder / "ArcChallenge" / "train.jsonl"
    with place.open("a") as file:
        file.write((folder / "ArcEasy" / "test.jsonl").read_text())
    write_jsonl(folder / "ArcChallenge" / "test.jsonl", [other(CommonsenseMixture.members[6], GOLDEN_OTHER)])
    data = CommonsenseMixture(Backbone(str(tiny_models["llama"])), str(folder), validation_rows=9)
    assert len(data.train_split) == 8 * ROWS
    assert (
        "ArcChallenge: 1 train rows occur in the test split of ArcEasy and are left out: line 7"
        in capsys.readouterr().err
    )


GOLDEN_OTHER = {
    "question": "Why do cats purr?",
    "choices": {"text": ["joy", "rain"], "label": ["A", "B"]},
    "answerKey": "A",
}


def test_weights_deal_the_training_rows(folder: Path, tiny_models: dict[str, Path]) -> None:
    data = CommonsenseMixture(
        Backbone(str(tiny_models["llama"])),
        str(folder),
        validation_rows=2,
        train_rows=6,
        weights={"BoolQ": 1.0, "Piqa": 1.0},
    )
    drawn = Counter(data.tokenizer.decode(ids[0])[:3] for ids in data.train_split["sequences"])
    assert len(drawn) == 2
    assert max(drawn.values()) - min(drawn.values()) <= 1
    assert (len(data.train_set), len(data.validation_set)) == (6, 2)


def test_train_seed_deals_other_rows(folder: Path, tiny_models: dict[str, Path]) -> None:
    def dealt(seed: int) -> set[str]:
        settings = {"validation_rows": 1, "train_rows": 2, "weights": {"BoolQ": 1.0}, "train_seed": seed}
        data = CommonsenseMixture(Backbone(str(tiny_models["llama"])), str(folder), **settings)
        return {str(ids) for ids in data.train_split["sequences"]}

    assert dealt(0) == dealt(0)
    assert len({frozenset(dealt(seed)) for seed in range(4)}) > 1


def test_development_rows_of_every_benchmark(folder: Path, tiny_models: dict[str, Path]) -> None:
    data = CommonsenseMixture(Backbone(str(tiny_models["llama"])), str(folder), validation_rows=9, development_rows=2)
    assert [len(part.reported_set) for part in data.parts] == [2] * 8
    assert [part.scored_split for part in data.parts] == ["development"] * 8
    trained = {str(ids) for ids in data.train_split["sequences"]}
    scored = {str(ids) for part in data.parts for ids in part.reported_set["sequences"]}
    assert trained
    assert not trained & scored


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights": {"Arc": 1.0}}, r"data\.weights: Arc: 1.0 is no weight of one of BoolQ"),
        ({"weights": {"BoolQ": -1.0}, "train_rows": 4}, r"BoolQ: -1.0 is no weight"),
        ({"weights": {"BoolQ": 1.0}}, r"give data\.train_rows too"),
        ({"weights": {"BoolQ": 0.0}, "train_rows": 4}, "a weight above 0"),
    ],
)
def test_weights_that_are_none(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(FlexoraError, match=expected):
        CommonsenseMixture(**settings)


def test_one_dataset_of_the_hub_is_no_mixture() -> None:
    with pytest.raises(FlexoraError, match=r"data\.source: one dataset is no mixture; name hub, packaged, or a folder"):
        CommonsenseMixture(source="hub:some/rows").prepare_data()


def test_a_share_that_is_larger_than_its_benchmark(folder: Path, tiny_models: dict[str, Path]) -> None:
    data = CommonsenseMixture(
        Backbone(str(tiny_models["llama"])), str(folder), validation_rows=2, train_rows=9, weights={"Siqa": 1.0}
    )
    with pytest.raises(FlexoraError, match="Siqa has 6 train rows, but its share of train_rows and validation_rows is"):
        _ = data.train_set
