import threading
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest

from rm_ray.batches.read_ahead import read_ahead

SECONDS = 240
"""Seconds after which a thread counts as stuck, even on a busy machine."""


class Source:
    """Counts its items as a thread makes them, and lets a test wait for them."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.made = 0
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[int]:
        self.thread = threading.current_thread()
        for item in range(self.count):
            with self.changed:
                self.made += 1
                self.changed.notify_all()
            yield item
        if self.error is not None:
            raise self.error

    def wait_until_made(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.made >= count, timeout=SECONDS)

    def goes_on(self, *, within: float) -> bool:
        made = self.made
        with self.changed:
            return self.changed.wait_for(lambda: self.made > made, timeout=within)

    def wait_until_stopped(self) -> None:
        assert self.thread is not None
        assert self.thread is not threading.current_thread()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()


def reading(source: Source, depth: int) -> Generator[int, None, None]:
    """Read ahead, as a generator that can be closed."""
    items = read_ahead(source, depth=depth)
    assert isinstance(items, Generator)
    return items


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_items_come_in_order_and_each_once(depth: int, count: int):
    source = Source(count)

    assert list(read_ahead(source, depth=depth)) == list(range(count))
    source.wait_until_stopped()


def test_items_are_made_before_the_first_is_requested():
    source = Source(3)

    read_ahead(source, depth=2)

    source.wait_until_made(2)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_at_most_depth_items_are_made_ahead(depth: int):
    source = Source(1_000)
    with closing(reading(source, depth)) as items:
        for taken in range(1, 4):
            assert next(items) == taken - 1
            source.wait_until_made(taken + depth)  # while the current one is in use
        assert not source.goes_on(within=0.1)
    source.wait_until_stopped()

    assert source.made == 3 + depth


def test_the_next_item_is_made_while_the_current_one_is_in_use():
    source = Source(2)

    for item in read_ahead(source):
        source.wait_until_made(min(item + 2, 2))  # fails if items are made only on request


@pytest.mark.parametrize("error", [ValueError("spoilt"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("depth", [1, 3])
def test_an_error_is_raised_after_the_items_before_it(depth: int, error: BaseException):
    source = Source(4, error)
    items = read_ahead(source, depth=depth)

    read = [next(items) for _ in range(4)]

    assert read == [0, 1, 2, 3]
    with pytest.raises(type(error)) as raised:
        next(items)
    assert raised.value is error
    assert list(items) == []
    source.wait_until_stopped()


def test_an_error_waits_until_it_is_its_turn():
    source = Source(1, ValueError("spoilt"))
    items = read_ahead(source, depth=5)

    assert next(items) == 0
    source.wait_until_stopped()  # it has raised by now
    with pytest.raises(ValueError, match="spoilt"):
        next(items)


def test_an_error_before_the_first_item_is_raised():
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no such table")

    with pytest.raises(OSError, match="no such table"):
        next(read_ahead(Broken()))


@pytest.mark.parametrize("taken", [1, 3])
def test_the_thread_stops_when_the_reader_does(taken: int):
    source = Source(10**9)

    with closing(reading(source, depth=2)) as items:
        for _ in range(taken):
            next(items)

    source.wait_until_stopped()


def test_the_thread_stops_when_the_reader_fails():
    source = Source(10**9)

    def read() -> None:
        for _ in read_ahead(source):
            raise RuntimeError("the step failed")

    with pytest.raises(RuntimeError, match="the step failed"):
        read()
    source.wait_until_stopped()
