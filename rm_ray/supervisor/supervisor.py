"""The supervisor: runs attempts in fresh processes until the run finishes or fails for good.

It imports neither Ray nor torch, so their crashes cannot take it down.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.orphans import adopting
from rm_ray.importing import share_package
from rm_ray.runs.attempts import Attempt, read_attempts
from rm_ray.runs.record import open_run
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage
from rm_ray.supervisor.attempt_process import run_attempt
from rm_ray.supervisor.claims import next_number, refuse_company
from rm_ray.supervisor.decide import decide
from rm_ray.supervisor.signals import Signals

logger = logging.getLogger(__name__)


def supervise(config: TrainConfig, startup: Startup) -> dict[str, Any]:
    """Train to the end, in as many attempts as needed; return the run's ``result.json``.

    Raises:
        InputError: the input is wrong.
        TrainingError: training cannot continue.
        StoppedError: a signal stopped the run.
    """
    share_package()
    run_folder, result = open_run(Storage.open(config.run.storage_path), config)
    if result is not None:
        return result
    refuse_company(run_folder)
    run_folder.delete_drafts()
    attempts = read_attempts(run_folder)
    first = len(attempts)
    began, command = startup.began, uuid.uuid4().hex
    with adopting(), Signals() as signals:
        while True:
            number = next_number(run_folder, attempts)
            attempts.append(Attempt(number=number, command=command, began=began, updated=began))
            result = run_attempt(config, run_folder, attempts, signals)
            latest = attempts[-1]
            if result is not None:
                return result
            delay = decide(attempts[first:], patience_s=config.checkpoint.storage_patience_s)
            logger.warning(
                "attempt %d ended at step %d: %s; %s",
                latest.number,
                latest.step,
                (latest.cause.strip() or "unknown cause").splitlines()[0],
                "retrying now" if delay == 0 else f"retrying in {delay:.0f} s",
            )
            signals.sleep(delay, step=latest.step)
            began = time.time()
