"""Work through the trials of a study: some at a time, each a chain of processes, with the time that is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import mean
from typing import IO

from filelock import BaseFileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flexora.compare.kept import is_done, read_row, trial_lock
from flexora.compare.rows import ResultRow
from flexora.compare.study import Study, Trial
from flexora.compare.trial import commands
from flexora.errors import FlexoraError, Interrupted
from flexora.processes import forwarded

#: Seconds between two looks at the processes.
TICK = 0.2


@dataclass
class Worker:
    """A trial at work.

    Attributes:
        trial: The trial.
        slot: Which of the jobs it is, for the choice of a GPU.
        log: Where its processes print.
        lock: Keeps others from the trial.
        steps: What is left of it.
        process: The process of the present step.
        step: Name of that step.
    """

    trial: Trial
    slot: int
    log: IO[bytes]
    lock: BaseFileLock
    steps: Iterator[tuple[str, list[str]]]
    process: subprocess.Popen[bytes] | None = None
    step: str = ""


@dataclass
class Schedule:
    """The trials of a study that are to be done, and how far they are.

    Attributes:
        study: The study.
        arguments: Command line of the study.
        jobs: Trials at the same time.
    """

    study: Study
    arguments: list[str]
    jobs: int
    _failed: dict[Trial, str] = field(default_factory=dict)
    _times: dict[str, list[float]] = field(default_factory=dict)
    _console: Console = field(default_factory=Console)
    _workers: list[Worker] = field(default_factory=list)
    _stopped: int = 0

    def __post_init__(self) -> None:
        """Take over what finished trials have taken."""
        for trial in self.study.trials:
            if (row := read_row(self.study, trial)) is not None:
                self._time(row)

    def run(self, trials: Sequence[Trial], finished: Callable[[], None]) -> dict[Trial, str]:
        """Do every trial that is not done yet; what one needs is done before it.

        Args:
            trials: The trials.
            finished: Called whenever one is done.

        Returns:
            Why trials failed; those too that need one that did.

        Raises:
            Interrupted: If a signal came; the phases have saved their state.
        """
        needs = self.study.with_needs(trials)
        order = {trial: place for place, trial in enumerate(self.study.trials)}
        graph = TopologicalSorter(needs)
        graph.prepare()
        done = {trial for trial in needs if is_done(self.study, trial)}
        left = [trial for trial in needs if trial not in done]
        waiting: list[Trial] = []
        ended: list[Trial] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as bar, forwarded(self._signal), self._orderly():
            task = bar.add_task("", total=len(left))
            while graph.is_active():
                waiting = sorted([*waiting, *graph.get_ready()], key=order.__getitem__)
                while waiting and len(self._workers) < self.jobs and not self._stopped:
                    trial = waiting.pop(0)
                    if trial not in done and not self._cannot(trial) and self._start(trial):
                        continue
                    graph.done(trial)
                    ended += [] if trial in done else [trial]
                    break  # others may be ready now, and come first
                for worker in list(self._workers):
                    if self._advance(worker):
                        graph.done(worker.trial)
                        finished()
                        ended.append(worker.trial)
                while ended:
                    left.remove(ended[0])
                    self._tell(ended.pop(0), left)
                    bar.advance(task)
                if self._stopped and not self._workers:
                    raise Interrupted(128 + self._stopped)
                bar.update(task, description=self._present(left))
                time.sleep(TICK if self._workers else 0)
        return self._failed

    @contextmanager
    def _orderly(self) -> Iterator[None]:
        """Leave no process behind, whatever ends the block."""
        try:
            yield
        finally:
            for worker in self._workers:
                if worker.process is not None:
                    worker.process.terminate()
                    worker.process.wait()

    def _cannot(self, trial: Trial) -> bool:
        missing = [need for need in self.study.needs(trial) if need in self._failed]
        if missing:
            self._failed[trial] = f"needs {missing[0]}, which failed"
        return bool(missing)

    def _start(self, trial: Trial) -> bool:
        """Begin a trial, unless another process is at it."""
        folder = self.study.run_folder(trial).root
        lock = trial_lock(self.study.run_folder(trial))
        try:
            lock.acquire()
        except Timeout:
            self._failed[trial] = "another process works at it; the same command goes on when that one is done"
            return False
        slot = min(set(range(self.jobs)) - {worker.slot for worker in self._workers})
        log = (folder / "log.txt").open("ab")
        self._workers.append(Worker(trial, slot, log, lock, commands(self.study, trial, self.arguments)))
        return True

    def _advance(self, worker: Worker) -> bool:
        """Start a worker's next step if its present one has ended; tell whether the trial has ended."""
        status = None if worker.process is None else worker.process.poll()
        if worker.process is not None and status is None:
            return False
        if status or self._stopped:
            if not self._stopped:
                self._failed[worker.trial] = f"{worker.step}: {_reason(status or 0, Path(worker.log.name))}"
            return self._end(worker)
        try:
            worker.step, command = next(worker.steps)
        except StopIteration:
            return self._end(worker)
        except Exception as error:  # a selector of the user's own may raise anything; other trials go on
            known = isinstance(error, FlexoraError)
            self._failed[worker.trial] = str(error) if known else f"{type(error).__name__}: {error}"
            return self._end(worker)
        if self._stopped:  # while the step was made ready
            return self._end(worker)
        worker.process = _call(command, worker.log, _threads_of(self.jobs) | _gpu_of(worker.slot, self.jobs))
        if self._stopped:
            worker.process.send_signal(self._stopped)
        return False

    def _end(self, worker: Worker) -> bool:
        worker.log.close()
        worker.lock.release()
        self._workers.remove(worker)
        return True

    def _signal(self, number: int) -> None:
        self._stopped = self._stopped or number
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(number)

    def _tell(self, trial: Trial, left: Sequence[Trial]) -> None:
        """Print how a trial has ended."""
        if trial in self._failed or self._stopped:
            said = f"failed: {self._failed[trial]}" if trial in self._failed else "stopped"
        else:
            row = read_row(self.study, trial)
            assert row is not None
            self._time(row)
            said = f"{row.metric} {row.score:.3f}, {row.adapted_layers} layers; {len(left)} trials left"
            said += f", about {self._time_left(left)}" if left else ""
        self._console.print(f"{trial}: {said}", soft_wrap=True, highlight=False)

    def _time(self, row: ResultRow) -> None:
        self._times.setdefault(row.arm, []).append(row.wall_seconds + row.evaluate_seconds)

    def _time_left(self, left: Sequence[Trial]) -> str:
        """About how long the rest will take, by what each arm has taken so far."""
        usual = mean(seconds for own in self._times.values() for seconds in own)
        seconds = sum(mean(self._times.get(trial.arm, [usual])) for trial in left if trial not in self._failed)
        return readable(seconds / self.jobs)

    def _present(self, left: Sequence[Trial]) -> str:
        """What is at work."""
        doing = "; ".join(f"{worker.trial} {worker.step}" for worker in self._workers)
        return f"{doing} · about {self._time_left(left)} left" if self._times and left else doing


def _call(command: Sequence[str], log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a step. In a process group of its own Ctrl-C reaches it once, from here."""
    whole = {**os.environ, **environment}
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0, env=whole)


def readable(seconds: float) -> str:
    """``3 h 20 min``, or minutes alone."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _reason(status: int, log: Path) -> str:
    """Why a step failed: the last line that it printed, or the signal that ended it."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1].strip()[:300] if lines else "it printed nothing"
    if status == -signal.SIGKILL:
        said = "killed, as the system does where memory runs out; lower data.batch_size, or give --jobs 1"
    elif status < 0:
        said = f"ended by signal {-status}"
    return f"{said} (its output: {log})"


def _threads_of(jobs: int) -> dict[str, str]:
    """Environment that shares the cores that this process may use among so many jobs."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs))}


def _gpu_of(slot: int, jobs: int) -> dict[str, str]:
    """Environment that gives a job a GPU of its own, of those that this process may use; jobs share where they must."""
    import torch

    count = torch.cuda.device_count()
    if jobs == 1 or not count:
        return {}
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": allowed[slot % len(allowed)]}
