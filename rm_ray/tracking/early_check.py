"""Early check that MLflow accepts a run, in the background of the preparations."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from rm_ray.errors import InputError, MlflowAwayError
from rm_ray.tracking.target import MlflowTarget

ANSWER_S, FILE_ANSWER_S = 10.0, 60.0
"""Seconds to wait for a server, or for a database file, before training starts without MLflow."""


class EarlyMlflowCheck:
    """Asks MLflow, in a background thread, whether it accepts a run."""

    def __init__(self, target: MlflowTarget) -> None:
        self._target = target
        self._refusal: InputError | None = None
        self._thread = threading.Thread(target=self._ask, name="mlflow-check", daemon=True)
        file = target.sqlite_file
        if file is not None and file.is_dir():  # MLflow would try to open it for a minute
            self._refusal = InputError(
                f"mlflow.tracking_uri '{target.tracking_uri}': {file} is a folder, and runs go to "
                "a database file; move the folder away, or name another file or a server"
            )
        elif file is None or not _accepts(file, target.experiment):
            self._thread.start()

    def refuse(self, patience_s: float | None = None) -> None:
        """Wait for an answer, for longer if MLflow is a local file; ignore a missing answer.

        Raises:
            InputError: MLflow rejects this run.
        """
        if patience_s is None:
            patience_s = ANSWER_S if self._target.sqlite_file is None else FILE_ANSWER_S
        if self._thread.ident is not None:
            self._thread.join(patience_s)
        if self._refusal is not None:
            raise self._refusal

    def _ask(self) -> None:
        from rm_ray.tracking.mlflow_run import ask_mlflow

        try:
            ask_mlflow(self._target)
        except InputError as error:
            self._refusal = error
        except MlflowAwayError:
            pass  # the sender reports it


def _accepts(file: Path, experiment: str) -> bool:
    """Return whether a database file surely takes runs; MLflow itself takes seconds to import."""
    if not file.exists():  # the run creates it
        return True
    query = "SELECT lifecycle_stage FROM experiments WHERE name = ?"
    try:
        uri = f"file:{quote(os.fsencode(file))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=0)) as database:  # busy: MLflow waits
            found = database.execute(query, (experiment,)).fetchone()
    except sqlite3.Error:  # MLflow says why
        return False
    return found is None or found[0] == "active"
