"""A thread that makes the next items ready while this one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

Ready = queue.Queue[tuple[T | None, BaseException | None]]


def read_ahead(items: Iterable[T], *, depth: int = 1) -> Iterator[T]:
    """Begin at once to make items ready, up to ``depth`` of them before they are asked for.

    What the thread raises is raised to the reader.
    """
    ready: Ready[T] = queue.Queue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            source = iter(items)
            while room.acquire() and not stopped.is_set():
                ready.put((next(source), None))
        except BaseException as error:  # handed over to the reader, as is the end of the items
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
