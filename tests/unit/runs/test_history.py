from rm_ray.runs.history import History, Record


def record(step, kind="train", **metrics):
    return Record(step=step, kind=kind, episode=2 * step, hours=step / 7, metrics=metrics)


def test_a_history_survives_a_round_trip():
    history = History([record(1, loss=0.1 + 0.2), record(1, "eval", loss=1e-300)])
    assert History.from_json_lines(history.to_json_lines().splitlines()) == history


def test_the_last_metrics_are_the_newest_of_their_kind():
    history = History([record(1, loss=3.0), record(2, loss=2.0), record(2, "eval", accuracy=0.5)])
    assert history.last("train") == {"loss": 2.0}
    assert history.last("eval") == {"accuracy": 0.5}
    assert History().last("eval") == {}
