"""``flexora run``: all phases in one go, again, after changes, and through signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flexora.cli import main
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from tests.commands import start_command
from tests.tiny import save_benchmark
from tests.verbs.test_bad_input import failing
from tests.verbs.test_pipeline import PER_LAYER

SAMPLES = "--evaluate.samples=true"


def test_run_does_everything_and_a_second_run_says_so(
    recipe: Callable[..., Path], tmp_path: Path, phases_in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = str(recipe()), tmp_path / "out"
    assert main(["run", "--config", config]) == 0
    table = capfd.readouterr().out
    assert "flexora" in table
    results = Results.read(out / "evaluate" / "results.json")
    assert [arm.name for arm in results.arms] == ["base", "lora", "flexora"]
    assert results.arms[1].trainable_parameters == 4 * PER_LAYER
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}

    assert main(["run", "--config", config]) == 0
    assert "all done" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == written

    assert main(["run", "--config", config, "--search.inner_steps=5"]) == 2
    assert "search.inner_steps 2 -> 5" in capfd.readouterr().err
    assert main(["search", "--config", config]) == 2
    assert "already holds a finished run" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == written

    # What decides speed and memory alone may change, before and after the end.
    faster = ["--finetune.prefix_cache=1", "--finetune.compile=true"]
    assert main(["run", "--config", config, *faster]) == 0
    assert "all done" in capfd.readouterr().out
    done = out / "finetune" / "done.json"
    done.unlink()
    assert main(["run", "--config", config, faster[0]]) == 0
    assert "all done" not in capfd.readouterr().out
    assert done.is_file()

    # A fine-tune that is done again makes the old scores those of an adapter that is gone.
    other = ["--finetune.learning_rate=0.5"]
    assert main(["run", "--config", config, *other]) == 2
    assert "finetune.learning_rate 0.01 -> 0.5" in capfd.readouterr().err
    for phase in ("finetune", "lora"):
        shutil.rmtree(out / phase)
    assert main(["run", "--config", config, *other]) == 0
    assert "scoring them again" in capfd.readouterr().out
    again = Results.read(out / "evaluate" / "results.json")
    assert again.arms[0] == results.arms[0]
    assert again.arms[2].loss != results.arms[2].loss


def test_layers_that_are_given_are_not_searched(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Its phases are processes, as those of every run outside of tests."""
    out = tmp_path / "out"
    flags = ["--finetune.selection=2,3", "--evaluate.arms=[flexora, base]"]
    assert main(["run", "--config", str(recipe()), *flags]) == 0
    assert not (out / "search").exists()
    report = (out / "report" / "report.html").read_text()
    assert "LoRA was put on 2 of 4 layers" in report
    assert "2, 3, named by hand" in report
    arms = Results.read(out / "evaluate" / "results.json").arms
    assert [arm.name for arm in arms] == ["flexora", "base"]
    assert arms[0].over_base is not None  # whatever the order
    assert "acc_norm" in (out / "report" / "results.md").read_text()
    assert main(["run", "--config", str(recipe()), *flags]) == 0


def test_all_arms_adapt_what_the_fine_tune_names(
    recipe: Callable[..., Path], tmp_path: Path, phases_in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = str(recipe()), tmp_path / "out"
    flags = ["--finetune.adapter={target_modules: [k_proj]}", "--evaluate.arms=[lora, flexora]"]
    assert main(["run", "--config", config, *flags]) == 0
    searched, tuned = (Selection.read(out / phase / "selection.json") for phase in ("search", "finetune"))
    assert set(map(tuple, searched.targets.values())) == {("q_proj", "v_proj")}
    assert tuned.targets == {layer: ["k_proj"] for layer in searched.layers}
    for phase in ("finetune", "lora"):
        tensors = load_file(out / phase / "adapter" / "adapter_model.safetensors")
        assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors} == {"k_proj"}
        done = json.loads((out / phase / "done.json").read_text())
        assert {name for names in done["targets"].values() for name in names} == {"k_proj"}
    page = (out / "report" / "report.html").read_text()
    assert "The fine-tune adapts k_proj there." in page
    assert "named by hand" not in page
    capfd.readouterr()
    assert main(["run", "--config", config, *flags]) == 0
    assert "all done" in capfd.readouterr().out


def test_a_selections_file_that_has_changed(
    recipe: Callable[..., Path], tmp_path: Path, phases_in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "selection.json"
    chosen = {"base": {"architecture": "LlamaForCausalLM", "num_layers": 4}, "layers": [1]}
    file.write_text(json.dumps(chosen | {"targets": {"1": ["q_proj"]}}))
    arguments = ["run", "--config", str(recipe()), f"--finetune.selection={file}", "--evaluate.arms=[flexora]"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert "all done" in capfd.readouterr().out
    file.write_text(json.dumps(chosen | {"targets": {"1": ["v_proj"]}}))
    assert "(targets.1 ['q_proj'] -> ['v_proj'])" in failing(arguments, capfd)
    file.unlink()  # what was done with it can still be looked at
    assert main(arguments) == 0


def test_local_rows_that_have_changed(
    recipe: Callable[..., Path], tmp_path: Path, phases_in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    rows, out = save_benchmark(tmp_path / "rows"), tmp_path / "out"
    arguments = ["run", "--config", str(recipe()), f"--data.init_args.source={rows}", "--evaluate.arms=[flexora]"]
    assert main(arguments) == 0
    for split, refused in (("train", ["search"]), ("test", ["search", "evaluate"])):
        whole = (rows / f"{split}.jsonl").read_text()
        (rows / f"{split}.jsonl").write_text(whole[: whole[:-1].rindex("\n") + 1])
        for phase in refused:
            line = failing(arguments if phase == "search" else [phase, *arguments[1:], SAMPLES], capfd)
            assert f"{out / phase} was made with other settings (files.{split}.jsonl " in line
        (rows / f"{split}.jsonl").write_text(whole)
    capfd.readouterr()
    assert main(arguments) == 0
    assert "all done" in capfd.readouterr().out
    for file in out.rglob("done.json"):  # folders that are older than the hashes
        done = json.loads(file.read_text())
        assert sorted(done.pop("files")) == ["test.jsonl", "train.jsonl"][: 1 if file.parent.name == "evaluate" else 2]
        file.write_text(json.dumps(done))
    (rows / "test.jsonl").write_text("")
    assert main(arguments) == 0
    shutil.rmtree(rows)  # what was done with them can still be looked at
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_reaches_the_phase_and_nothing_is_lost(
    number: signal.Signals, status: int, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    history, printed = tmp_path / "out" / "search" / "history.csv", tmp_path / "printed.txt"
    settings = ["--search.outer_steps=3000", "--search.checkpoint_every=1000"]
    process = start_command(["run", "--config", str(recipe()), *settings], printed)
    assert process.pid is not None
    deadline = time.monotonic() + 240
    while not (history.is_file() and len(history.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline, "the search did not start"
        assert process.is_alive(), printed.read_text()
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(timeout=120)
    output = printed.read_text()
    assert process.exitcode == status, output
    assert "the same command" in output
    assert "Traceback" not in output
    assert list((tmp_path / "out" / "search" / "checkpoints").glob("step-*.ckpt"))
    assert not (tmp_path / "out" / "search" / "selection.json").exists()
