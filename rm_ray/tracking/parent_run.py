"""A run in MLflow under which other runs appear, such as a sweep's under which its trials do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from rm_ray.errors import MlflowAwayError
from rm_ray.tracking.mlflow_run import RUN_TAG, MlflowRun, translate_errors
from rm_ray.tracking.target import MlflowTarget, RunDescription

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0


class ParentRun(threading.Thread):
    """Opens the parent and adopts its children in the background; MLflow may be away at any time.

    Whatever MLflow did not accept is sent again later: at the latest by ``finish``, also that of a
    later command.
    """

    def __init__(
        self,
        target: MlflowTarget,
        description: RunDescription,
        list_keys: Callable[[], Iterable[str]],
    ) -> None:
        """Take the children's keys, by which their runs are found, from ``list_keys``."""
        super().__init__(name="mlflow-parent", daemon=True)
        self._target, self._description, self._list_keys = target, description, list_keys
        self._run: MlflowRun | None = None
        self._adopted: set[str] = set()
        self._ended = threading.Event()
        self._has_warned = False

    def open(self) -> None:
        """Open the parent before any child is there; warn if MLflow does not answer.

        Raises:
            InputError: the experiment is deleted.
        """
        try:
            self._open()
        except MlflowAwayError as error:
            self._warn(error)

    def run(self) -> None:
        """Adopt children until ``finish``."""
        while not self._ended.wait(LOOK_EVERY_S):
            try:
                self._adopt()
            except MlflowAwayError as error:
                self._warn(error)

    def stop(self) -> None:
        """Stop the background work; what is left is done by a later command."""
        self._ended.set()

    def finish(
        self,
        metrics: dict[str, float],
        documents: dict[str, dict[str, Any]],
        figures: Sequence[Path],
    ) -> bool:
        """Adopt the last children, log the results and mark the parent finished.

        Returns whether MLflow accepted everything.
        """
        self.stop()
        if self.is_alive():
            self.join()
        try:
            run = self._adopt()
            with translate_errors(self._target.tracking_uri):
                for name, value in metrics.items():
                    run.client.log_metric(run.run_id, name, value)
            run.finish(documents, figures)
        except MlflowAwayError as error:
            logger.warning("%s. Rerun the same command to send what is missing", error)
            return False
        return True

    def _open(self) -> MlflowRun:
        if self._run is None:
            self._run = MlflowRun.open(self._target, self._description)
        return self._run

    def _adopt(self) -> MlflowRun:
        run = self._open()
        left = [key for key in self._list_keys() if key not in self._adopted]
        self._adopted |= adopt(run, left)
        return run

    def _warn(self, error: MlflowAwayError) -> None:
        if not self._has_warned:
            logger.warning("%s; the sweep goes on without it, and sends again later", error)
        self._has_warned = True


def adopt(parent: MlflowRun, keys: Iterable[str]) -> set[str]:
    """Place the runs with these keys under a parent; return the keys of those that exist.

    Raises:
        MlflowAwayError: MLflow does not answer.
    """
    found = set()
    client = parent.client
    with translate_errors(client.tracking_uri):
        experiment_id = client.get_run(parent.run_id).info.experiment_id
        for key in keys:
            for child in client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{key}'"):
                client.set_tag(child.info.run_id, MLFLOW_PARENT_RUN_ID, parent.run_id)
                found.add(key)
    return found
