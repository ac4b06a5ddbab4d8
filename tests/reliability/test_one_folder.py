"""Two commands in one output folder: the second one refuses, and the first one never hears of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import start_command
from tests.reliability.holding import LOSS, Commands, Hold, products, status


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("verb", "second"),
    [("search", "search"), ("finetune", "finetune"), ("evaluate", "evaluate"), ("search", "finetune")],
)
def test_a_second_command_refuses(verb: str, second: str, commands: Commands, tmp_path: Path) -> None:
    printed = {name: tmp_path / f"{name}.txt" for name in ("alone", "first", "second")}
    out, hold = tmp_path / "out", Hold(tmp_path / "held", LOSS[verb], at=3)
    alone = start_command([*commands[verb], str(tmp_path / "alone")], printed["alone"])
    assert status(alone) == 0, printed["alone"].read_text()
    first = start_command([*commands[verb], str(out)], printed["first"], prepare=hold)
    hold.wait_until_reached([first], printed["first"])
    before = everything(out)
    other = start_command([*commands[second], str(out)], printed["second"])
    assert status(other) == 2
    (line,) = [line for line in printed["second"].read_text().splitlines() if line.startswith("flexora ")]
    assert line == (
        f"flexora {second}: error: output_dir: another process works in {out}; wait for it or choose another output_dir"
    )
    assert "Traceback" not in printed["second"].read_text()
    assert everything(out) == before
    hold.let_go()
    assert status(first) == 0, printed["first"].read_text()
    assert len(found := products(out / verb)) >= 3
    assert found == products(tmp_path / "alone" / verb)
