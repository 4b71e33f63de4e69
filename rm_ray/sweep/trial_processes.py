"""The processes of a sweep's trials: ``jobs/train.py``, started, stopped and waited for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rm_ray.importing import ROOT
from rm_ray.runs.attempts import read_attempts
from rm_ray.runs.layout import RESULT
from rm_ray.storage import Storage
from rm_ray.sweep.recipes import recipe_text
from rm_ray.sweep.record import Ending, mark
from rm_ray.sweep.trials import Trial

logger = logging.getLogger(__name__)

STATUSES_OF_STOPS = (130, 143)
"""Exit statuses of a run that was asked to stop."""


class TrialProcesses:
    """Starts trials as a shell would, as children of the sweep, with its environment."""

    def __init__(self, folder: Storage, scratch: Path, environment: Mapping[str, str]) -> None:
        """Write marks to the sweep's folder, recipes and logs to ``scratch`` on this machine."""
        self._folder, self._scratch = folder, scratch
        self._environment = {**os.environ, **environment}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._is_stopping: set[str] = set()
        scratch.mkdir(parents=True, exist_ok=True)

    def start(self, trial: Trial) -> None:
        """Start a trial, which resumes if it began before; do nothing if it is running."""
        if trial.name in self._running:
            return
        recipe = self._scratch / f"{trial.name}.yaml"
        recipe.write_text(recipe_text(trial.config))
        train = [sys.executable, f"{ROOT}/jobs/train.py", "--recipe", str(recipe)]
        with self._log(trial.name).open("ab") as log:
            self._running[trial.name] = subprocess.Popen(
                [sys.executable, "-m", "rm_ray.sweep.bound", str(os.getpid()), *train],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # a signal from the terminal reaches only the sweep
            )

    def is_running(self, name: str) -> bool:
        """Return whether a trial's process has not been collected yet."""
        return name in self._running

    def pid(self, name: str) -> int:
        """Return the process id of a trial that is running."""
        return self._running[name].pid

    def stop(self, name: str) -> None:
        """Ask a trial to take a checkpoint and stop, if it is running; do not wait for it."""
        if name in self._running and name not in self._is_stopping:
            self._is_stopping.add(name)
            self._running[name].terminate()

    def reap(self) -> None:
        """Collect the processes that have ended; mark the trials that did not finish."""
        for name in list(self._running):
            status = self._running[name].poll()
            if status is not None:
                self._end(name, status)

    def stop_all(self) -> None:
        """Ask every trial that is running to stop; do not wait for them."""
        for name in list(self._running):
            self.stop(name)

    def join(self) -> None:
        """Wait until every process has ended."""
        for name in list(self._running):
            self._end(name, self._running[name].wait())

    def kill(self) -> None:
        """Kill the processes that are left; the attempts that they supervise end by themselves."""
        for process in self._running.values():
            process.kill()

    def _end(self, name: str, status: int) -> None:
        del self._running[name]
        was_asked = name in self._is_stopping
        self._is_stopping.discard(name)
        if was_asked or self._folder.exists(f"{name}/{RESULT}"):
            return
        ending: Ending = "interrupted" if status in STATUSES_OF_STOPS else "failed"
        cause = self._find_cause(name, status)
        mark(self._folder, name, ending, cause)
        logger.warning("%s %s: %s", name, ending, cause)

    def _find_cause(self, name: str, status: int) -> str:
        """Return why a trial ended, in one line: from its attempts, or by its exit status."""
        latest = read_attempts(self._folder.folder(name))[-1:]
        causes = [attempt.cause.strip().splitlines()[0] for attempt in latest if attempt.cause]
        cause = causes[0] if causes else f"exit status {status}"
        return f"{cause}; see {self._log(name)}"

    def _log(self, name: str) -> Path:
        return self._scratch / f"{name}.log"
