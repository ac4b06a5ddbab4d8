"""The order of trials, what a failure costs, and signals; steps are small shell commands here."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from flexora.compare import schedule as module
from flexora.compare.schedule import Schedule, readable
from flexora.compare.study import Study, Trial
from flexora.errors import FlexoraError, Interrupted
from tests.compare.test_study import ARMS, study


class Plan:
    """Stands in for trials: shell commands by arm, and a note of what was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str]) -> None:
        self.started: list[Trial] = []
        self.done: list[Trial] = []
        self.scripts = scripts
        monkeypatch.setattr(module, "commands", self.commands)
        monkeypatch.setattr(module, "is_done", lambda study, trial: trial in self.done)
        monkeypatch.setattr(module, "read_row", lambda study, trial: None)
        monkeypatch.setattr(Schedule, "_tell", lambda self, trial, left: None)

    def commands(self, study: Study, trial: Trial, arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
        self.started.append(trial)
        yield "step", ["sh", "-c", self.scripts.get(trial.arm, "true")]
        self.done.append(trial)


def run(made: Study, trials: list[Trial], jobs: int = 2) -> dict[Trial, str]:
    """Do trials, one or two at a time."""
    return Schedule(made, [], jobs).run(trials, lambda: None)


def test_what_a_trial_needs_is_done_before_and_done_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study(tmp_path)
    plan = Plan(monkeypatch, {})
    wanted = Trial("PIQA", "random", 1, 1)
    counted: list[int] = []
    assert Schedule(made, [], 2).run([wanted], lambda: counted.append(len(plan.done))) == {}
    assert counted == [1, 2, 3]
    chain = [Trial("PIQA", "LoRA", 0), Trial("PIQA", "Flexora", 1), wanted]
    assert plan.started == plan.done == chain
    assert run(made, made.trials) == {}
    assert sorted(map(str, plan.started)) == sorted(map(str, made.trials))


def test_a_failure_costs_only_what_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    plan = Plan(monkeypatch, {"Flexora": "echo out of luck; exit 3"})
    failed = run(made, made.trials)
    assert {trial.arm for trial in failed} == {"Flexora", "random"}
    assert {trial.arm for trial in plan.done} == {"base", "LoRA"}
    assert len(failed) + len(plan.done) == len(made.trials)
    assert "step: out of luck (its output:" in failed[Trial("PIQA", "Flexora", 0)]
    assert failed[Trial("PIQA", "random", 0, 1)] == "needs piqa/flexora/0, which failed"


def test_a_problem_of_the_trial_itself_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    Plan(monkeypatch, {})

    def refuse(study: Study, trial: Trial, arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
        raise FlexoraError("no such layer")
        yield

    monkeypatch.setattr(module, "commands", refuse)
    assert run(made, made.trials[:1]) == {made.trials[0]: "no such layer"}


def test_a_trial_that_another_process_is_at_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    plan = Plan(monkeypatch, {})
    folder = made.run_folder(trial := made.trials[0]).root
    folder.mkdir(parents=True)
    with FileLock(folder / ".trial.lock"):
        failed = run(made, made.trials)
    assert list(failed) == [trial]
    assert "another process works at it" in failed[trial]
    assert len(plan.done) == len(made.trials) - 1
    assert run(made, made.trials) == {}


@pytest.mark.parametrize("error", [ValueError("of all kinds"), FlexoraError("of all kinds")])
def test_whatever_a_trial_raises_the_others_go_on(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study(tmp_path)
    plan = Plan(monkeypatch, {})
    good = plan.commands

    def sometimes(study: Study, trial: Trial, arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
        if trial.arm == "base":
            raise error
        yield from good(study, trial, arguments)

    monkeypatch.setattr(module, "commands", sometimes)
    failed = run(made, made.trials)
    assert {trial.arm for trial in failed} == {"base"}
    assert all(reason.endswith("of all kinds") for reason in failed.values())
    assert len(plan.done) == len(made.trials) - len(failed)


def test_a_step_that_was_killed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    Plan(monkeypatch, {"base": "echo Epoch 1; kill -9 $$"})
    failed = run(made, made.trials[:1])
    assert "step: killed, as the system does where memory runs out" in failed[made.trials[0]]


def test_no_process_outlives_a_study_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path, arms={"base": {"layers": "AllLayers"}, "LoRA": ARMS["LoRA"]}, seeds=[0])
    file = tmp_path / "pid"
    Plan(monkeypatch, {"base": "true", "LoRA": f"echo $$ > {file}; exec sleep 60"})

    def broken() -> None:
        while not file.is_file() or not file.read_text():
            time.sleep(0.02)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Schedule(made, [], 2).run(made.trials, broken)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_each_job_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    assert [module._threads_of(jobs) for jobs in (1, 2, 9)] == [{}, {"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "1"}]
    assert module._gpu_of(0, 2) == {}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [module._gpu_of(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [module._gpu_of(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4", "7"]
    assert module._gpu_of(0, 1) == {}


def test_jobs_work_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two waits for a file that the other one writes."""
    made = study(tmp_path, arms={"base": {"layers": "AllLayers"}}, reference="base", seeds=[0])
    both = "[ $(ls [0-9]* | wc -l) = 2 ] && exit"
    Plan(monkeypatch, {"base": f"cd {tmp_path}; touch $$; for i in $(seq 100); do {both}; sleep .1; done; exit 1"})
    assert run(made, made.trials) == {}


def test_a_signal_reaches_the_steps_and_stops_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = study(tmp_path)
    saved = tmp_path / "saved"
    plan = Plan(monkeypatch, {"base": f"trap 'touch {saved}; exit 143' TERM; touch {saved}.ready; sleep 30 & wait"})

    def kill() -> None:
        while not Path(f"{saved}.ready").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=kill).start()
    with pytest.raises(Interrupted) as stopped:
        run(made, made.trials, jobs=1)
    assert stopped.value.status == 143
    assert saved.is_file()
    assert plan.started == [made.trials[0]]
    assert plan.done == []


def test_words_for_times() -> None:
    assert [readable(seconds) for seconds in (20, 90, 12_000)] == ["0 min", "2 min", "3 h 20 min"]
