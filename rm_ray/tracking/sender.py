"""Sends metrics to MLflow from a thread of the driver; training never waits for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rm_ray.errors import InputError
from rm_ray.runs.history import Record, RecordKind
from rm_ray.tracking.target import MlflowAwayError, MlflowTarget, RunDescription

if TYPE_CHECKING:  # mlflow takes seconds to import, which the thread spends
    from rm_ray.tracking.mlflow_run import MlflowRun

T = TypeVar("T")

logger = logging.getLogger(__name__)

RECORDS_PER_CALL = 40

TRIES_OF_A_TABLE = 8
"""About two minutes."""

ANSWER_S, FILE_ANSWER_S = 10.0, 60.0
"""How long the answer of a server, or of a file, is waited for before a training."""

Table = tuple[str, list[dict[str, Any]]]


def mlflow_opener(target: MlflowTarget, description: RunDescription) -> Callable[[], MlflowRun]:
    """Return what opens a run in MLflow, or finds it."""

    def open_run() -> MlflowRun:
        from rm_ray.tracking.mlflow_run import MlflowRun

        return MlflowRun.open(target, description)

    return open_run


class EarlyMlflowCheck:
    """Asks MLflow, beside what else is to be done before a training, whether it takes a run."""

    def __init__(self, target: MlflowTarget) -> None:
        self._target = target
        self._refusal: InputError | None = None
        self._thread = threading.Thread(target=self._ask, name="mlflow-question", daemon=True)
        file = target.sqlite_file
        if file is None or file.exists():  # else the run makes it
            self._thread.start()

    def refuse(self, patience_s: float | None = None) -> None:
        """Wait for an answer; where there is none, training goes on without.

        A file of this machine is waited for longer than a server that may be away.

        Raises:
            InputError: MLflow will take nothing of this run.
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
            pass  # it is told once there is something to send


class MetricSender:
    """Takes records and tables as they come and brings each to MLflow once.

    What MLflow has already, from an earlier attempt at the same steps, is not sent again. The run
    in MLflow is opened, or found, when the first item comes.
    """

    def __init__(self, open_run: Callable[[], MlflowRun]) -> None:
        """Begin; ``open_run`` is called in the thread, again and again until MLflow answers."""
        self._open_run = open_run
        self._queue: queue.Queue[Record | Table | None] = queue.Queue()
        self._unsent = 0
        self.mlflow_run: MlflowRun | None = None
        """The run, once MLflow has answered."""
        self.refusal: InputError | None = None
        """Why MLflow will take nothing, whatever is waited for."""
        self._thread = threading.Thread(target=self._work, name="mlflow-shipper", daemon=True)
        self._thread.start()

    @property
    def unsent(self) -> int:
        """Return how many records and tables MLflow has not taken yet."""
        return self._unsent

    def send(self, record: Record) -> None:
        """Hand over the metrics of a step."""
        self._put(record)

    def send_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Hand over a table, shown under ``name`` among the run's artifacts."""
        self._put((name, rows))

    def _put(self, item: Record | Table) -> None:
        self._unsent += 1
        self._queue.put(item)

    def close(self, patience_s: float = 30.0) -> int:
        """Send what is left, for so long; return how many items stay unsent."""
        self._queue.put(None)
        self._thread.join(patience_s)
        return self._unsent

    def end(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Close, and mark the run, if MLflow answers soon."""
        if self.close(patience_s=5.0) or self.mlflow_run is None:
            return
        with suppress(MlflowAwayError):
            self.mlflow_run.end(status)

    def _work(self) -> None:
        shipped: dict[RecordKind, set[int]] = {}
        is_open = True
        while is_open:
            items = [self._queue.get()]
            time.sleep(0.5)  # let a batch gather
            while not self._queue.empty():
                items.append(self._queue.get())
            is_open = None not in items
            if self.mlflow_run is None and any(item is not None for item in items):
                try:
                    self.mlflow_run = mlflow_run = self._retry(self._open_run)
                except InputError as error:
                    self.refusal = error
                    logger.warning("%s; training goes on, and keeps its metrics", error)
                    return
                shipped = self._retry(mlflow_run.logged_steps)
            records = [item for item in items if isinstance(item, Record)]
            if records:
                self._ship(mlflow_run, records, shipped)
            for item in items:
                if isinstance(item, tuple):
                    self._ship_table(mlflow_run, item)

    def _ship(
        self, mlflow_run: MlflowRun, records: Sequence[Record], shipped: dict[RecordKind, set[int]]
    ) -> None:
        new = []
        for record in records:
            if record.step not in shipped[record.kind]:
                shipped[record.kind].add(record.step)
                new.append(record)
        self._unsent -= len(records) - len(new)
        for first in range(0, len(new), RECORDS_PER_CALL):
            batch = new[first : first + RECORDS_PER_CALL]
            self._retry(partial(mlflow_run.log, batch))
            self._unsent -= len(batch)

    def _ship_table(self, mlflow_run: MlflowRun, table: Table) -> None:
        """Send a table, unless its store fails while MLflow answers; metrics matter more."""
        name, rows = table
        try:
            self._retry(partial(mlflow_run.log_table, name, rows), tries=TRIES_OF_A_TABLE)
        except MlflowAwayError as error:
            logger.warning("%s is not in MLflow, whose store of files fails: %s", name, error)
        else:
            self._unsent -= 1

    def _retry(self, call: Callable[[], T], *, tries: int | None = None) -> T:
        """Call until MLflow answers; waiting longer each time, at most half a minute.

        Raises:
            MlflowAwayError: it has not, in as many ``tries``.
        """
        delay = 1.0
        while True:
            try:
                return call()
            except MlflowAwayError as error:
                tries = None if tries is None else tries - 1
                if tries == 0:
                    raise
                if delay == 1.0:
                    logger.warning("%s; training goes on, and it is tried again", error)
                time.sleep(delay)
                delay = min(2 * delay, 30.0)
