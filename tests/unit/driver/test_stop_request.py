from heartbeats import reading
from local_actor import LocalActor

from rm_ray.driver.stop_request import StopRequest, none_would_save
from rm_ray.tracking.channel import Channel
from rm_ray.tracking.heartbeat import RESIZED, Beat


def test_a_run_stops_at_once_only_if_no_step_would_be_lost():
    assert none_would_save([], asked_s=0.5)
    assert none_would_save([reading(0, has_stepped=False, ago=1.0)], asked_s=1.5)
    assert not none_would_save([reading(0, ago=1.0)], asked_s=1.5)
    assert not none_would_save([reading(0, has_stepped=False), reading(1)], asked_s=1.5)


def test_a_heartbeat_older_than_the_request_proves_nothing():
    assert not none_would_save([reading(0, has_stepped=False, ago=1.0)], asked_s=0.5)


def answer(channel: Channel) -> str | None:
    """Return the reason to stop that a rank gets in response to its beat."""
    beat = Beat(rank=0, pid=1, node_id="", phase="training", step=1, num_beats=1, stack="")
    return channel.beat(beat)


def test_a_request_reaches_the_workers_and_a_restarted_channel():
    channel = Channel()
    request = StopRequest(LocalActor(channel))
    request.repeat()
    assert answer(channel) is None

    request.ask("terminated")
    assert answer(channel) == "terminated"
    assert request.age_s < 60

    channel.__init__()  # as if restarted
    assert answer(channel) is None
    request.repeat()
    assert answer(channel) == "terminated"


def test_of_two_reasons_the_more_pressing_one_is_repeated():
    request = StopRequest(LocalActor(Channel()))

    request.ask("terminated")
    request.ask(RESIZED)

    assert request.reason == "terminated"
