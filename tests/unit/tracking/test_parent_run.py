import socket

from mlflow_runs import begin

from rm_ray.tracking.parent_run import ParentRun, adopt
from rm_ray.tracking.target import MlflowTarget, RunDescription

SWEEP = RunDescription(name="sweep", key="sweep-key", params={"sweep.metric": "m"}, tags={})


def parent_of(run) -> str | None:
    return run.client.get_run(run.run_id).data.tags.get("mlflow.parentRunId")


def test_children_that_exist_are_adopted(target):
    parent, child = begin(target, key="parent"), begin(target, key="child")
    other = begin(target, key="other")
    assert adopt(parent, ["child", "not there yet"]) == {"child"}
    assert (parent_of(child), parent_of(other)) == (parent.run_id, None)


def test_the_last_children_the_results_and_the_end_reach_mlflow(target, tmp_path):
    figure = tmp_path / "settings.png"
    figure.write_bytes(b"png")
    keys: list[str] = []
    one = ParentRun(target, SWEEP, lambda: keys)
    one.open()
    one.start()
    child = begin(target, key="child")
    keys.append("child")
    assert one.finish({"best": 0.5}, {"ranking.json": {"a": 1}}, [figure])
    found = child.client.get_run(parent_of(child))
    assert (found.info.run_name, found.info.status) == ("sweep", "FINISHED")
    assert found.data.metrics == {"best": 0.5}
    assert found.data.params == {"sweep.metric": "m"}
    paths = {item.path for item in child.client.list_artifacts(found.info.run_id)}
    assert paths == {"ranking.json", "plots"}


def test_a_sweep_goes_on_without_mlflow_and_says_so(caplog):
    caplog.set_level("WARNING", "rm_ray")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    away = ParentRun(MlflowTarget(tracking_uri=address, experiment="tests"), SWEEP, list)
    away.open()
    away.start()
    assert not away.finish({}, {}, [])
    ours = [each for each in caplog.records if each.name.startswith("rm_ray")]
    first, second = (each.getMessage() for each in ours)
    assert first.endswith("the sweep goes on without it, and sends again later")
    assert second.endswith("Rerun the same command to send what is missing")
