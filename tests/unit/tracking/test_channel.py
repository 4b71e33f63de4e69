import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from local_actor import LocalActor, use_local_actors
from mlflow_runs import make_records

from rm_ray.runs.history import Record
from rm_ray.tracking import channel as channel_module
from rm_ray.tracking.channel import Channel, ChannelReader, ChannelUpdate, ChannelWriter
from rm_ray.tracking.heartbeat import RESIZED, Beat

TABLE = ("eval_samples/step-1.json", [{"pair": 0}])


def beat(rank: int, num_beats: int) -> Beat:
    return Beat(
        rank=rank, pid=1, node_id="n", phase="training", step=4, num_beats=num_beats, stack=""
    )


def test_an_update_is_fetched_once_and_its_live_line_persists():
    channel, records = Channel(), make_records(1, 3)
    channel.post(ChannelUpdate(status="step 1", lines=["a"], records=records[:1]))
    channel.post(ChannelUpdate(lines=["b"], records=records[1:], tables=[TABLE]))
    update = channel.fetch()
    assert update == ChannelUpdate(
        status="step 1", lines=["a", "b"], records=records, tables=[TABLE]
    )
    assert channel.fetch() == ChannelUpdate(status="step 1")


def test_a_rank_that_beats_without_progress_ages(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(channel_module.time, "monotonic", lambda: now[0])
    channel = Channel()
    channel.beat(beat(0, 1))
    channel.beat(beat(1, 1))
    now[0] = 103.0
    channel.beat(beat(0, 2))
    channel.beat(beat(1, 1))
    now[0] = 105.0
    ages = {one.beat.rank: (one.received, one.moved) for one in channel.heartbeats()}
    assert ages == {0: (2.0, 2.0), 1: (2.0, 5.0)}


def test_a_signal_replaces_the_request_for_a_resize():
    channel = Channel()
    assert channel.beat(beat(0, 1)) is None
    channel.ask_to_stop(RESIZED)
    assert channel.beat(beat(0, 2)) == RESIZED
    channel.ask_to_stop("terminated")
    channel.ask_to_stop(RESIZED)
    assert channel.beat(beat(0, 3)) == "terminated"


class CountingChannel(Channel):
    num_posts = 0

    def post(self, update: ChannelUpdate) -> None:
        self.num_posts += 1
        super().post(update)


@pytest.fixture
def local_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    use_local_actors(monkeypatch)


def test_the_writer_posts_log_lines_at_once_and_the_rest_twice_a_second(local_actors, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(channel_module.time, "monotonic", lambda: now[0])
    channel, (one, two) = CountingChannel(), make_records(1, 2)
    logger = logging.getLogger("rm_ray.somewhere")
    with ChannelWriter(LocalActor(channel)) as writer:
        writer.record(one)
        writer.status("step 1")
        assert channel.num_posts == 1
        for line in ("step 2", "step 3"):
            writer.status(line)
        writer.record(two)
        writer.table(*TABLE)
        assert channel.num_posts == 1
        logger.info("saved")
        logger.warning("slow")
        logging.getLogger("other").warning("not of the package")
        assert channel.num_posts == 3
        now[0] = 100.6
        writer.status("step 4")
        assert channel.num_posts == 4
        writer.status("step 5")
    logger.info("after the end")
    assert channel.num_posts == 5
    assert channel.fetch() == ChannelUpdate(
        status="step 5", lines=["saved", "warning: slow"], records=[one, two], tables=[TABLE]
    )


def test_the_writer_gets_the_mlflow_run_id_from_the_driver(local_actors):
    channel = Channel()
    writer = ChannelWriter(LocalActor(channel))
    assert writer.mlflow_run_id() is None
    channel.set_mlflow_run_id("abc")
    assert writer.mlflow_run_id() == "abc"


class Tracking:
    """Stands in for the sender and the gauges, and records their input."""

    unsent = 2

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.tables: list[Any] = []
        self.shown: list[Record] = []
        self.figures: dict[str, float] = {}
        self.mlflow_run: Any = SimpleNamespace(run_id="abc")

    def send(self, record: Record) -> None:
        self.records.append(record)

    def send_table(self, *table: Any) -> None:
        self.tables.append(table)

    def show(self, records: list[Record]) -> None:
        self.shown += records

    def set(self, name: str, value: float) -> None:
        self.figures[name] = value


def test_the_reader_passes_each_update_to_console_mlflow_and_gauges(local_actors, capsys, caplog):
    caplog.set_level("INFO", "rm_ray")
    channel, tracking, records = Channel(), Tracking(), make_records(1, 3)
    stand_in: Any = tracking
    with ChannelReader(LocalActor(channel), stand_in, stand_in):
        channel.post(ChannelUpdate(status="step 3", lines=["saved"], records=records))
        channel.post(ChannelUpdate(tables=[TABLE]))
    assert tracking.records == tracking.shown == records
    assert tracking.tables == [TABLE]
    assert tracking.figures == {"mlflow_unsent": 2}
    assert channel.mlflow_run_id() == "abc"
    assert caplog.messages == ["saved", "step 3"]


class DyingChannel(Channel):
    """Dies at the reader's first call, and is restarted by Ray."""

    def __init__(self) -> None:
        super().__init__()
        self.has_died = threading.Event()

    def fetch(self) -> ChannelUpdate:
        if not self.has_died.is_set():
            self.has_died.set()
            raise ray.exceptions.RayActorError
        return super().fetch()


def test_the_reader_survives_a_channel_that_dies(local_actors, monkeypatch):
    monkeypatch.setattr(channel_module, "FLUSH_EVERY_S", 0.01)
    channel, tracking = DyingChannel(), Tracking()
    stand_in: Any = tracking
    with ChannelReader(LocalActor(channel), stand_in, stand_in):
        assert channel.has_died.wait(60)
        channel.post(ChannelUpdate(records=make_records(1, 1)))
    assert tracking.records == make_records(1, 1)


def test_the_writer_can_send_what_is_left_at_once(local_actors, monkeypatch):
    monkeypatch.setattr(channel_module.time, "monotonic", lambda: 0.0)  # nothing is due
    channel, records = Channel(), make_records(1, 1)
    writer = ChannelWriter(LocalActor(channel))
    writer.record(*records)
    assert channel.fetch().records == []
    writer.send()
    assert channel.fetch().records == records
