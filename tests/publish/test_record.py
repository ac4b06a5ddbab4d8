"""A published folder becomes an entry of the zoo, which an evaluation finds by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flexora.cli import main
from flexora.scoring.results import Results
from flexora.zoo import adapters, entries
from flexora.zoo.adapters import AdapterRecord
from tests.publish.conftest import BASE


def test_an_entry_is_made_and_used(
    finished: tuple[Path, Path],
    run_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    zoo = tmp_path / "zoo"
    folder = zoo / "adapters" / "arc-tiny"
    assert main(["publish", str(run_dir), "--repo-id=me/arc-tiny", *BASE, "--to", str(folder)]) == 0
    capfd.readouterr()
    assert main(["zoo", "record", str(folder), "--recipe=own/tiny"]) == 0
    text = capfd.readouterr().out
    record = AdapterRecord.model_validate(yaml.safe_load(text))
    measured = Results.read(run_dir / "evaluate" / "results.json")
    assert (record.rows, record.split_rows, record.seed) == (13, 13, 3)
    assert (record.base.id, record.base.revision, record.location) == ("tiny/llama-base", "v1", "arc-tiny")
    assert [score.metrics for score in record.scores] == [arm.metrics for arm in measured.arms]

    (zoo / "adapters" / "arc-tiny.yaml").write_text(text)
    for module in (adapters, entries):
        monkeypatch.setattr(module, "zoo_root", lambda: zoo)
    config, out = str(finished[0]), tmp_path / "theirs"
    evaluate = ["evaluate", "--config", config, "--adapter=zoo:Arc_Tiny", f"--output_dir={out}"]
    assert main(evaluate) == 0
    theirs = Results.read(out / "evaluate" / "results.json").arms[1]
    ours = next(arm for arm in measured.arms if arm.name == "flexora")
    assert theirs.metrics == ours.metrics
    capfd.readouterr()
    assert main([*evaluate, "--data.prompt_style=letters"]) == 2
    assert "was trained with data.prompt_style completion" in capfd.readouterr().err

    (folder / "adapter_model.safetensors").write_bytes(b"other weights")
    assert main([*evaluate, f"--output_dir={tmp_path / 'again'}"]) == 2
    assert "is missing or not the adapter of the record" in capfd.readouterr().err


def test_what_is_no_published_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "record", str(tmp_path), "--recipe=demo"]) == 2
    assert "has no config.yaml that can be read" in capsys.readouterr().err


@pytest.mark.parametrize("location", ["../elsewhere", "/etc", "a/b", ".."])
def test_a_location_stays_in_the_zoo(location: str) -> None:
    with pytest.raises(ValueError, match="must be the name of a folder beside the index"):
        AdapterRecord(
            recipe="demo",
            base={"id": "a/b"},
            layers=[0],
            benchmark="ArcEasy",
            split="test",
            rows=1,
            split_rows=1,
            seed=0,
            scores=[],
            sha256="0" * 64,
            location=location,
        )
