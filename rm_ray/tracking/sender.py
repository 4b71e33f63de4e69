"""Background sender of metrics to MLflow; training never waits for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rm_ray.errors import InputError, MlflowAwayError
from rm_ray.runs.history import Record, RecordKind
from rm_ray.tracking.target import METRICS_PER_CALL, MlflowTarget, RunDescription

if TYPE_CHECKING:  # mlflow takes seconds to import, so the thread imports it
    from rm_ray.tracking.mlflow_run import MlflowRun

T = TypeVar("T")

logger = logging.getLogger(__name__)

RECORDS_PER_CALL = 40

TRIES_OF_A_TABLE = 8
"""About two minutes of retries."""

Table = tuple[str, list[dict[str, Any]]]


class _GivenUpError(Exception):
    """Nobody waits any more for what MLflow has not accepted."""


def mlflow_opener(target: MlflowTarget, description: RunDescription) -> Callable[[], MlflowRun]:
    """Return a function that opens the run in MLflow, or finds it."""

    def open_run() -> MlflowRun:
        from rm_ray.tracking.mlflow_run import MlflowRun

        return MlflowRun.open(target, description)

    return open_run


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Divide records into calls; a single record may be over the limit of metrics."""
    batch: list[Record] = []
    for record in records:
        num_metrics = sum(len(one.metrics) for one in (*batch, record))
        if batch and (len(batch) == RECORDS_PER_CALL or num_metrics > METRICS_PER_CALL):
            yield batch
            batch = []
        batch.append(record)
    if batch:
        yield batch


class MetricSender:
    """Sends each record and table to MLflow once, from a background thread.

    Records that MLflow already has from an earlier attempt are not sent again. The MLflow run is
    opened or found when the first item arrives.
    """

    def __init__(self, open_run: Callable[[], MlflowRun]) -> None:
        """Start the thread, which calls ``open_run`` until MLflow answers."""
        self._open_run = open_run
        self._queue: queue.Queue[Record | Table | None] = queue.Queue()
        self._unsent = 0
        self._given_up = threading.Event()
        self.mlflow_run: MlflowRun | None = None
        """The MLflow run; None until MLflow has answered."""
        self.refusal: InputError | None = None
        """Why MLflow rejects the run for good; None if it does not."""
        self._thread = threading.Thread(target=self._run, name="mlflow-sender", daemon=True)
        self._thread.start()

    @property
    def unsent(self) -> int:
        """Number of records and tables that MLflow has not accepted yet."""
        return self._unsent

    def send(self, record: Record) -> None:
        """Queue the metrics of a step."""
        self._put(record)

    def send_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Queue a table, which becomes the artifact ``name`` of the run."""
        self._put((name, rows))

    def close(self, patience_s: float = 30.0) -> int:
        """Send the rest for up to ``patience_s`` seconds; return the number of unsent items.

        The thread begins no further call; what one in progress sends is counted as unsent.
        """
        self._queue.put(None)
        self._thread.join(patience_s)
        self._given_up.set()
        return self._unsent

    def end(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Close, and set the run's status if MLflow answers within seconds."""
        if self.close(patience_s=5.0) or self.mlflow_run is None:
            return
        with suppress(MlflowAwayError):
            self.mlflow_run.end(status)

    def _put(self, item: Record | Table) -> None:
        self._unsent += 1
        self._queue.put(item)

    def _run(self) -> None:
        with suppress(_GivenUpError):
            self._work()

    def _work(self) -> None:
        is_open, logged = True, dict[RecordKind, set[int]]()
        while is_open:
            items, is_open = self._take()
            if items and self.mlflow_run is None:
                try:
                    self.mlflow_run = self._retry(self._open_run)
                except InputError as error:
                    self.refusal = error
                    logger.warning("%s; training continues, and keeps its metrics", error)
                    return
                logged = self._retry(self.mlflow_run.logged_steps)
            if self.mlflow_run is not None:
                records = [item for item in items if isinstance(item, Record)]
                self._send_records(self.mlflow_run, records, logged)
                for item in items:
                    if isinstance(item, tuple):
                        self._send_table(self.mlflow_run, item)

    def _take(self) -> tuple[list[Record | Table], bool]:
        """Wait for items; return them, and whether more may follow."""
        found = [self._queue.get()]
        time.sleep(0.5)  # let a batch gather
        while not self._queue.empty():
            found.append(self._queue.get())
        return [item for item in found if item is not None], None not in found

    def _send_records(
        self, mlflow_run: MlflowRun, records: Sequence[Record], logged: dict[RecordKind, set[int]]
    ) -> None:
        new = []
        for record in records:
            if record.step not in logged[record.kind]:
                logged[record.kind].add(record.step)
                new.append(record)
        self._unsent -= len(records) - len(new)
        for batch in _batches(new):
            self._retry(partial(mlflow_run.log, batch))
            self._unsent -= len(batch)

    def _send_table(self, mlflow_run: MlflowRun, table: Table) -> None:
        """Send a table; give up if MLflow's file store fails, so that metrics still get sent."""
        name, rows = table
        try:
            self._retry(partial(mlflow_run.log_table, name, rows), tries=TRIES_OF_A_TABLE)
        except MlflowAwayError as error:
            logger.warning("%s was not sent, because MLflow's file store fails: %s", name, error)
        else:
            self._unsent -= 1

    def _retry(self, call: Callable[[], T], *, tries: int | None = None) -> T:
        """Call until MLflow answers, with growing delays of up to 30 s.

        Raises:
            MlflowAwayError: MLflow has not answered after ``tries`` calls.
            _GivenUpError: the sender is closed.
        """
        delay = 1.0
        while True:
            if self._given_up.is_set():
                raise _GivenUpError
            try:
                return call()
            except MlflowAwayError as error:
                tries = None if tries is None else tries - 1
                if tries == 0:
                    raise
                if delay == 1.0 and not self._given_up.is_set():
                    logger.warning("%s; training continues, retrying", error)
                self._given_up.wait(delay)
                delay = min(2 * delay, 30.0)
