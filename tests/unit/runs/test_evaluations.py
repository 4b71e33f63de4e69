from pathlib import Path

from rm_ray.runs.evaluations import read_evaluations
from rm_ray.storage import Storage

LOSS = "eval/rm/loss"


def test_evaluations_come_in_order_without_those_seen_drafts_and_older_reports(tmp_path: Path):
    run = Storage.open(str(tmp_path))
    assert list(read_evaluations(run, LOSS)) == []
    for step in (20, 5, 10):
        report = {"step": step, "metrics": {"eval/rm/loss": 1 / step}, "overall": {}}
        run.write_json(f"evaluations/step-{step:08d}.json", report)
    run.write_json("evaluations/step-00000001.json", {"step": 1, "overall": {}})
    run.write_text("evaluations/step-00000030.json.0123.tmp", "{")
    found = list(read_evaluations(run, LOSS))
    assert [(one.step, one.metrics["eval/rm/loss"]) for one in found] == [
        (5, 0.2), (10, 0.1), (20, 0.05),
    ]  # fmt: skip
    later = read_evaluations(run, LOSS, seen={found[0].file, found[1].file})
    assert [one.step for one in later] == [20]


def test_each_set_has_evaluations_of_its_own(tmp_path: Path):
    run = Storage.open(str(tmp_path))
    run.write_json("evaluations/step-00000002.json", {"step": 2, "metrics": {LOSS: 0.5}})
    chat = {"step": 3, "metrics": {"eval/chat/accuracy": 0.75}}
    run.write_json("evaluations/chat/step-00000003.json", chat)
    assert [one.metrics for one in read_evaluations(run, LOSS)] == [{LOSS: 0.5}]
    assert [one.metrics for one in read_evaluations(run, "eval/chat/loss")] == [chat["metrics"]]
