"""A disk that fills up and rows that vanish under a whole phase: one line, and the folder can be gone on with."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flexora.checkpoint import CheckpointFolder
from flexora.cli import main

PRODUCTS = {"search": ("history.csv", "selection.json"), "finetune": ("history.csv",)}


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes, or the same one with more."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted: list[str] = []

    def sized(size: int) -> Path:
        option = f"remount,size={size}" if mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this machine mounts nothing")
        mounted.append(option)
        return place

    yield sized
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("verb", PRODUCTS)
def test_a_disk_that_fills_up(
    verb: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """At several sizes: behind some checkpoint, or in the middle of what comes last."""
    arguments = [verb, "--config", str(recipe()), "--trainer.logger=false", "--output_dir"]
    arguments[1:1] = ["--selection=1,3", "--finetune.checkpoint_every=1"] if verb == "finetune" else []
    straight = tmp_path / "straight"
    assert main([*arguments, str(straight)]) == 0
    whole = bytes_of(straight / verb)  # without the report, which comes last
    place = small_disk(whole // 3)
    for part in (3, 2):
        small_disk(whole // part)
        capfd.readouterr()
        assert main([*arguments, str(place / "out")]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1
        assert "No space left on device" in lines[0]
        assert not (place / "out" / verb / "done.json").exists()
        CheckpointFolder(place / "out" / verb / "checkpoints").newest(lambda _: None)  # whole, or there is none
    small_disk(2 * bytes_of(straight) + 4 * whole)
    assert main([*arguments, str(place / "out")]) == 0
    for name in PRODUCTS[verb]:
        assert (place / "out" / verb / name).read_bytes() == (straight / verb / name).read_bytes()


@pytest.mark.parametrize("verb", ["search", "evaluate"])
def test_rows_that_vanish(
    verb: str, recipe: Callable[..., Path], benchmark_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(benchmark_folder, rows)
    split = {"search": "train", "evaluate": "test"}[verb]
    arguments = [verb, "--config", str(recipe()), f"--data.init_args.source={rows}", "--evaluate.arms=[base]"]
    (rows / f"{split}.jsonl").rename(rows / "elsewhere")
    assert main(arguments) == 2
    assert f"no {split}" in (error := capfd.readouterr().err) or f"{split}.jsonl" in error
    (rows / "elsewhere").rename(rows / f"{split}.jsonl")
    assert main(arguments) == 0
