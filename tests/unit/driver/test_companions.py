from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from local_actor import LocalActor, use_local_actors
from resolved_runs import builtin_run

from rm_ray.driver import companions as companions_module
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.companions import Companions, companions, evaluator
from rm_ray.driver.run_record import begin_record
from rm_ray.driver.trainer import build_job
from rm_ray.errors import LostError
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.runs.history import Record
from rm_ray.tracking.channel import Channel, ChannelUpdate
from rm_ray.worker.job import TrainJob

RECORD = Record(step=1, kind="train", episode=8, hours=0.1, metrics={"train/rm/loss": 0.5})


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record started and killed mirrors; the channel is an object in this process."""
    noted: list[str] = []
    use_local_actors(monkeypatch)
    monkeypatch.setattr(
        companions_module, "open_channel", lambda name: noted.append(name) or LocalActor(Channel())
    )
    monkeypatch.setattr(
        companions_module, "start_mirror", lambda *_: noted.append("mirror") or "mirror"
    )
    monkeypatch.setattr(companions_module.ray, "kill", lambda actor: noted.append(f"end {actor}"))
    yield noted


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statuses given to the MLflow run."""
    marked: list[str] = []
    monkeypatch.setattr(
        companions_module.MetricSender, "end", lambda _, status: marked.append(status)
    )
    return marked


def accompanied(resolved: ResolvedRun) -> Any:
    return companions(resolved, begin_record(resolved), attempt=3)


def test_records_from_workers_reach_the_sender(
    tmp_path: Path, mirrors: list[str], ends: list[str], monkeypatch: pytest.MonkeyPatch
):
    sent: list[Record] = []
    monkeypatch.setattr(
        companions_module.MetricSender, "send", lambda _, record: sent.append(record)
    )
    with accompanied(builtin_run(tmp_path)) as beside:
        beside.channel.post.remote(ChannelUpdate(records=[RECORD]))

    assert sent == [RECORD]
    assert ends == []
    assert len(mirrors) == 1  # only the channel: nothing to publish
    assert mirrors[0].startswith("board-")
    assert mirrors[0].endswith("-3")


def test_a_lost_run_is_marked_failed_until_the_next_attempt(
    tmp_path: Path, mirrors: list[str], ends: list[str]
):
    with pytest.raises(LostError), accompanied(builtin_run(tmp_path)):
        raise LostError("rank 1 died")

    assert ends == ["FAILED"]


@pytest.mark.parametrize("error", [None, LostError("rank 1 died"), KeyError("a bug of ours")])
def test_a_mirror_ends_with_the_workers_however_they_end(
    tmp_path: Path, mirrors: list[str], ends: list[str], error: Exception | None
):
    resolved = builtin_run(tmp_path, hub={"repo_id": "me/rewards"})
    try:
        with accompanied(resolved):
            if error is not None:
                raise error
    except (LostError, KeyError):
        pass

    assert mirrors[1:] == ["mirror", "end mirror"]


def beside_training(folder: Path, where: str) -> Any:
    sections: dict[str, Any] = {
        "data": {"eval": ["builtin:test"]},
        "evaluation": {"where": where},
        "checkpoint": {"every_steps": 2},
    }
    resolved = builtin_run(folder, **sections)
    job = build_job(resolved, AttemptHandle(), run_key="key", channel=None)
    beside = Companions(channel=None, channel_name="board-key-1", sender=None)  # type: ignore[arg-type]
    return evaluator(resolved, job, beside)


@pytest.mark.parametrize("error", [None, LostError("rank 1 died")])
def test_an_evaluator_runs_beside_the_workers_and_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
):
    noted: list[Any] = []

    def start(channel: str, job: TrainJob, streams: dict[str, Any]) -> str:
        noted.extend([channel, [*streams]])
        return "evaluator"

    monkeypatch.setattr(companions_module, "start_evaluator", start)
    monkeypatch.setattr(companions_module.ray, "kill", lambda actor: noted.append(f"end {actor}"))
    with suppress(LostError), beside_training(tmp_path / "beside", "beside") as handle:
        assert handle == "evaluator"
        if error is not None:
            raise error
    assert noted == ["board-key-1", ["train", "eval"], "end evaluator"]

    with beside_training(tmp_path / "within", "within") as handle:
        assert handle is None
    assert len(noted) == 3
