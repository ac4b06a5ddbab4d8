"""Checkpoint files: broken ones are told from whole ones, whatever is wrong with them."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flexora.checkpoint import CheckpointFolder, read_checkpoint
from flexora.errors import FlexoraError

STEPS = (7, 9, 12)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "theta": [torch.full((50,), float(step))]}


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointFolder:
    """Three checkpoints, of which two are kept."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for step in STEPS:
        folder.write(step, state(step))
    return folder


def found(checkpoints: CheckpointFolder, told: list[str] | None = None) -> int:
    """The step of the checkpoint that a phase would go on from."""
    newest = checkpoints.newest([].append if told is None else told.append)
    assert newest is not None
    step: int = read_checkpoint(newest)["step"]
    return step


def names(checkpoints: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_are_kept(checkpoints: CheckpointFolder) -> None:
    assert names(checkpoints) == [f"step-{step:07d}.{kind}" for step in STEPS[1:] for kind in ("ckpt", "json")]
    told: list[str] = []
    assert found(checkpoints, told) == 12
    assert told == []


def test_every_fault_of_the_newest_is_detected(checkpoints: CheckpointFolder) -> None:
    newest = checkpoints.newest(print)
    assert newest is not None
    whole, rng = newest.read_bytes(), random.Random(0)
    faults = [whole[: len(whole) * part // 20] for part in range(20)]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        faults.append(bytes(flipped))
    for fault in faults:
        newest.write_bytes(fault)
        told: list[str] = []
        assert found(checkpoints, told) == 9
        assert told == [f"checkpoint: {newest} is damaged, and passed over for an older one"]
    newest.unlink()
    assert found(checkpoints) == 9


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": "00"}', "\xff"])
def test_a_broken_manifest(checkpoints: CheckpointFolder, text: str) -> None:
    (checkpoints.folder / "step-0000012.json").write_bytes(text.encode("latin-1"))
    assert found(checkpoints) == 9


def test_a_damaged_one_is_written_again_when_its_step_comes(checkpoints: CheckpointFolder) -> None:
    (checkpoints.folder / "step-0000012.ckpt").write_bytes(b"")
    checkpoints.write(12, state(12))
    told: list[str] = []
    assert found(checkpoints, told) == 12
    assert told == []


def test_a_damaged_one_of_a_later_step_goes(checkpoints: CheckpointFolder) -> None:
    (checkpoints.folder / "step-0000012.ckpt").write_bytes(b"")
    checkpoints.write(10, state(10))
    assert names(checkpoints) == [f"step-{step:07d}.{kind}" for step in (9, 10) for kind in ("ckpt", "json")]


def test_no_whole_one_is_an_error_and_no_finished_one_a_start(checkpoints: CheckpointFolder) -> None:
    for file in checkpoints.folder.glob("*.ckpt"):
        file.write_bytes(b"PK")
    with pytest.raises(FlexoraError, match=r"none in .* is whole; delete that folder to start again"):
        checkpoints.newest(print)
    for file in checkpoints.folder.glob("*.json"):  # killed before the manifest of the first one
        file.unlink()
    assert checkpoints.newest(print) is None


def test_nothing_is_executed(checkpoints: CheckpointFolder) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.abort, ()

    checkpoints.write(20, {"step": Hostile()})
    with pytest.raises(FlexoraError, match="cannot read the checkpoint"):
        found(checkpoints)


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Nothing larger than ``room`` bytes can be written, as by ``ulimit -f``."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_leaves_the_older_ones(checkpoints: CheckpointFolder) -> None:
    kept = names(checkpoints)
    with full_disk(200), pytest.raises(FlexoraError, match=r"step-0000020\.ckpt: File too large; make"):
        checkpoints.write(20, state(20))
    assert names(checkpoints) == kept
    assert found(checkpoints) == 12


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("place", range(4))
def test_a_write_that_fails_anywhere_leaves_a_whole_one(
    checkpoints: CheckpointFolder, monkeypatch: pytest.MonkeyPatch, call: str, place: int
) -> None:
    """Content and folder of the checkpoint and of its manifest are synced: four calls; renamed are two files."""
    real, calls = getattr(os, call), iter(range(10))

    def fail(*arguments: Any) -> None:
        if next(calls) == place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    monkeypatch.setattr(os, call, fail)
    if call == "replace" and place >= 2:
        checkpoints.write(20, state(20))
    else:
        with pytest.raises(FlexoraError, match="No space left on device; make room or choose another place"):
            checkpoints.write(20, state(20))
    monkeypatch.undo()
    assert found(checkpoints) in (12, 20)
    checkpoints.write(20, state(20))
    assert found(checkpoints) == 20
    assert names(checkpoints) == [f"step-{step:07d}.{kind}" for step in (12, 20) for kind in ("ckpt", "json")]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")  # root may write to read-only folders
    with pytest.raises(FlexoraError, match=r"cannot write to .*; make room or choose another place"):
        CheckpointFolder(tmp_path / "checkpoints").write(1, state(1))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_small_tmpfs(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        checkpoints = CheckpointFolder(tmp_path / "checkpoints")
        checkpoints.write(1, state(1))
        with pytest.raises(FlexoraError, match="No space left on device"):
            checkpoints.write(2, state(2) | {"large": torch.zeros(50_000)})
        assert found(checkpoints) == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_one_without_a_manifest_is_told_of_and_kept(checkpoints: CheckpointFolder) -> None:
    (checkpoints.folder / "step-0000009.json").unlink()
    told: list[str] = []
    assert found(checkpoints, told) == 12
    assert told == [f"checkpoint: 1 without a manifest in {checkpoints.folder}; left out, and kept"]
    for step in (13, 14):
        checkpoints.write(step, state(step))
    steps = [f"step-{step:07d}.{kind}" for step in (13, 14) for kind in ("ckpt", "json")]
    assert names(checkpoints) == ["step-0000009.ckpt", *steps]


def test_a_checkpoint_is_not_built_in_memory(tmp_path: Path) -> None:
    """Half a gigabyte would do it; ten times less room is left."""
    large = {"theta": torch.zeros(2**27)}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, limits[1]))
    try:
        CheckpointFolder(tmp_path / "large").write(1, large)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    newest = CheckpointFolder(tmp_path / "large").newest(pytest.fail)
    assert newest is not None
    assert newest.stat().st_size > 2**29
