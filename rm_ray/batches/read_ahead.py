"""A thread that prepares the next items while the current one is in use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Ready = queue.Queue[tuple[T | None, BaseException | None]]


def read_ahead(items: Iterable[T], *, depth: int = 1) -> Iterator[T]:
    """Start preparing items now, up to ``depth`` ahead of the reader.

    An exception in the thread is raised to the reader when its turn comes.
    """
    ready: Ready[T] = queue.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            source = iter(items)
            while room.acquire() and not stopped.is_set():
                ready.put((next(source), None))
        except BaseException as error:  # the reader raises it; StopIteration ends the items
            ready.put((None, error))

    threading.Thread(target=work, name="read-ahead", daemon=True).start()
    return _read(ready, room, stopped)


def _read(ready: Ready[T], room: threading.Semaphore, stopped: threading.Event) -> Iterator[T]:
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            room.release()
            assert item is not None
            yield item
    finally:
        stopped.set()
        room.release()
