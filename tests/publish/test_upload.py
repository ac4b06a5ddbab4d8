"""Publishing to a hub that speaks HTTP, and reading from it what was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexora.cli import main
from flexora.publish.bundle import files_of
from flexora.search.selection import Selection
from flexora.zoo.hub import _download
from flexora.zoo.references import referenced_selection
from tests.publish.conftest import publish
from tests.publish.fake_hub import FakeHub, Repository

REPO = "me/arc-tiny"


def test_what_is_pushed_is_what_is_in_the_folder(
    run_dir: Path, hub: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    assert publish(run_dir) == 0
    assert "dry run" in capfd.readouterr().out
    assert hub.requests == []

    assert publish(run_dir, "--push") == 0
    folder = run_dir / "publish"
    there = hub.repositories[REPO]
    assert there.private
    assert there.revisions["main"] == {str(file.relative_to(folder)): file.read_bytes() for file in files_of(folder)}
    assert hub.requests.index("POST /api/validate-yaml") < hub.requests.index("POST /api/repos/create")
    printed = capfd.readouterr().out
    assert f"{hub.url}/{REPO}" in printed
    assert there.commits["main"] in printed

    # Another time as a pull request: what an earlier upload had and this one has not goes, the files of others stay.
    there.revisions["main"] |= {"NOTICE": b"old", "docs/gates.png": b"theirs", "logo.png": b"theirs"}
    before = dict(there.revisions["main"])
    assert publish(run_dir, "--push", "--pr") == 0
    assert there.revisions["main"] == before
    assert there.revisions["refs/pr/1"].keys() == before.keys() - {"NOTICE"}
    assert f"{hub.url}/{REPO}/discussions/1" in capfd.readouterr().out


def test_others_fine_tune_the_layers_and_score_the_adapter(
    finished: tuple[Path, Path],
    run_dir: Path,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert publish(run_dir, "--push") == 0
    config, own = str(finished[0]), tmp_path / "theirs"
    there = ["--config", config, f"--output_dir={own}"]
    assert main(["finetune", *there, f"--selection=hf:{REPO}", "--finetune.trainer.max_epochs=1"]) == 0
    published = Selection.read(run_dir / "publish" / "selection.json")
    used = Selection.read(own / "finetune" / "selection.json")
    assert (used.source, used.targets, used.alpha) == (f"hf:{REPO}", published.targets, published.alpha)

    commit = hub.repositories[REPO].commits["main"]
    adapter = f"hf:{REPO}@{commit}"
    # Weights that are pickles are there, but never come here.
    hub.repositories[REPO].revisions[commit]["adapter_model.bin"] = b"pickle"
    assert main(["evaluate", *there, f"--adapter={adapter}"]) == 0
    arms = {arm["name"]: arm for arm in json.loads((own / "evaluate" / "results.json").read_text())["arms"]}
    scored = json.loads((run_dir / "evaluate" / "results.json").read_text())["arms"][2]
    assert arms[adapter]["metrics"] == scored["metrics"]
    assert arms[adapter]["trainable_parameters"] == scored["trainable_parameters"]
    assert not any("adapter_model.bin" in request for request in hub.requests)

    capfd.readouterr()
    letters = ["--data.prompt_style=letters", f"--output_dir={tmp_path / 'letters'}"]
    assert main(["evaluate", *there, *letters, f"--adapter={adapter}"]) == 2
    assert f"{adapter} was trained with data.prompt_style completion" in capfd.readouterr().err

    # What was read once is there without a network, too.
    _download.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert referenced_selection(f"hf:{REPO}") is not None


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("hf:tiny", "write hf:USER/NAME or hf:USER/NAME@REVISION"),
        ("hf:me/arc@", "write hf:USER/NAME or hf:USER/NAME@REVISION"),
        ("hf:me/../../etc", "Repo id must be in the form"),
        ("hf:me/nothing", "there is no such repository"),
        ("hf:me/other@v9", "there is no such revision"),
        ("hf:me/other", "hf:me/other has no selection.json"),
    ],
)
def test_a_reference_with_nothing_behind_it_is_one_line(
    reference: str,
    said: str,
    finished: tuple[Path, Path],
    hub: FakeHub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.repositories["me/other"] = Repository(private=False)
    hub.repositories["me/other"].commit("main", {"README.md": b"hello"}, "start")
    arguments = ["--config", str(finished[0]), f"--output_dir={tmp_path / 'out'}", f"--selection={reference}"]
    assert main(["finetune", *arguments]) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (["--push"], {"HF_TOKEN": "hf_wrong"}, "the hub wants a login"),
        (["--push", "--repo-id=you/arc"], {}, "403: You don't have the rights"),
        (["--push", "--repo-id=me/public"], {}, "me/public is public already"),
        (["--push", "--license=no-such-licence"], {}, 'refuses the card: "license" is not valid;'),
        (["--public"], {}, "--public is for uploading; add --push"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    options: list[str],
    environment: dict[str, str],
    said: str,
    run_dir: Path,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub.repositories["me/public"] = Repository(private=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert publish(run_dir, *options) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("flexora publish: error")]
    assert said in line
    assert not any("/commit/" in request for request in hub.requests)


def test_a_hub_out_of_reach_is_one_line(
    run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert publish(run_dir, "--push") == 2
    assert f"cannot upload to {REPO}" in capfd.readouterr().err
