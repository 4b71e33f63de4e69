from types import SimpleNamespace

import pytest

from rm_ray.publish import mirror_actor
from rm_ray.publish.export_gate import ClientsError
from rm_ray.publish.mirror_actor import Backoff, HubMirror


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(mirror_actor.time, "monotonic", lambda: clock.now)
    return clock


def test_the_delay_doubles_with_each_failure(clock: SimpleNamespace):
    backoff = Backoff(first_s=2.0, most_s=7.0)
    tried = []
    for _ in range(30):
        if backoff.is_due("a"):
            tried.append(clock.now - 1_000.0)
            backoff.put_off("a")
        assert backoff.is_due("b")
        clock.now += 1.0

    assert tried == [0.0, 2.0, 6.0, 13.0, 20.0, 27.0]


def test_a_failing_checkpoint_does_not_block_the_others(clock: SimpleNamespace):
    tried: list[str] = []

    class Stub:
        def find_wanted(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name=name) for name in ("unanswered", "damaged", "sound")]

        def find_waiting(self) -> list[object]:
            return []

        def make_ready(self, found: SimpleNamespace) -> object:
            tried.append(found.name)
            if found.name == "unanswered":
                raise ClientsError("killed for memory")
            return None if found.name == "damaged" else object()

    mirror = object.__new__(HubMirror)
    mirror._gauges = SimpleNamespace(set=lambda *_: None)
    mirror._not_ready = Backoff()

    with pytest.raises(ClientsError):
        mirror._make_ready(Stub())
    assert tried == ["unanswered", "damaged", "sound"]
    mirror._make_ready(Stub())  # both failures are backed off
    assert tried[3:] == ["sound"]
    clock.now += 600.0
    with pytest.raises(ClientsError):
        mirror._make_ready(Stub())
    assert tried[4:] == ["unanswered", "damaged", "sound"]
