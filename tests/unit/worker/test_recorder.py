from pathlib import Path

from plain_training import PlainChannel, PlainRank

from rm_ray.runs.history import History
from rm_ray.train.progress import Progress
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.recorder import Recorder


def make(rank: PlainRank, channel: PlainChannel | None, history: History | None = None) -> Recorder:
    progress = Progress(step=3, episode=18, seconds=7200.0)
    clocks = Clocks(progress, rank.heartbeat, rank.job.startup, run_began=0.0)
    return Recorder.of(rank.job, history or History(), clocks, rank.heartbeat, channel)


def test_a_record_has_the_run_s_step_pairs_and_hours(rank: PlainRank):
    channel = PlainChannel()
    recorder = make(rank, channel)
    recorder.add("train", {"train/rm/loss": 0.5})
    (record,) = recorder.history.records
    assert (record.step, record.kind, record.episode) == (3, "train", 18)
    assert 2.0 <= record.hours < 2.01
    assert channel.records == [record]


def test_other_ranks_keep_the_history_and_send_nothing(rank: PlainRank):
    recorder = make(rank, None)
    recorder.add("train", {})
    recorder.show("step 3/8")
    recorder.replay()
    assert len(recorder.history.records) == 1
    assert recorder.mlflow_run_id() is None


def test_a_replay_resends_earlier_attempts_without_drafts_of_samples(rank: PlainRank):
    first, second = PlainChannel(), PlainChannel()
    recorder = make(rank, first)
    recorder.add("train", {"train/rm/loss": 0.5})
    recorder.add("eval", {"eval/rm/loss": 0.4})
    recorder.write("samples/step-000003.json", [{"pair": 0}])
    (Path(rank.job.run_folder.path) / "samples" / "step-000004.json.draft").write_text("[")
    make(rank, second, recorder.history).replay()
    assert second.records == first.records
    assert second.tables == {"eval_samples/step-000003.json": [{"pair": 0}]}
    assert make(rank, second).mlflow_run_id() == "mlflow-id"
